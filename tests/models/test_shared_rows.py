"""Examples that share a row see what each would see alone, whatever computes the attention."""

import random

import pytest
import torch
from golden_data import load_model
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_mask, flex_attention

from foveal.data.forward_inputs import ForwardInputs, GroupSpan
from foveal.models import shared_rows
from foveal.models.forward import hidden_states
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.row_view import RowView
from foveal.models.shared_rows import FASTEST, FORMS, choose_attention

CPU = torch.device("cpu")
BLOCKS = "foveal_blocks"
KINDS = [BLOCKS, "foveal_sdpa", "foveal_eager"]
BORDER = 64  # original context of tiny_b
# (tokens of the prefix, tokens of each branch); the model's context border is 64 tokens, so the
# third group is of long examples, side by side with short ones.
GROUPS = {
    "one branch": [(9, [5])],
    "many branches": [(20, [5, 8, 1, 12])],
    "side by side": [(7, []), (12, []), (3, [])],
    "all together": [(20, [5, 8, 12]), (30, []), (60, [10, 15]), (1, [2, 1]), (5, [])],
}


def lay_out(sizes):
    """Place groups one after another."""
    groups, start = [], 0
    for prefix, branches in sizes:
        starts, place = [], start + prefix
        for branch in branches:
            starts.append(place)
            place += branch
        groups.append(GroupSpan(start, tuple(starts), place))
        start = place
    return tuple(groups)


class Row:
    """A row of random tokens, and the separate samples it stands for."""

    def __init__(self, sizes):
        self.groups = lay_out(sizes)
        length = self.groups[-1].end
        self.ids = torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(0))
        positions, lengths = [], []
        self.samples = []  # places in the row of each separate sample's tokens
        for prefix, branches in sizes:
            start = len(positions)
            first = list(range(start, start + prefix))
            longest = prefix + max(branches, default=0)
            positions += range(prefix)
            lengths += [longest] * prefix
            if not branches:
                self.samples.append(first)
            for branch in branches:
                self.samples.append(first + list(range(len(positions), len(positions) + branch)))
                positions += range(prefix, prefix + branch)
                lengths += [prefix + branch] * branch
        is_long = torch.tensor(lengths) > BORDER
        self.positions = torch.stack([torch.tensor(positions), is_long.long()])[:, None]

    @property
    def inputs(self):
        return ForwardInputs(self.ids[None], self.positions, {}, (), ())


@pytest.fixture(scope="module")
def model():
    """Two key heads for four query heads."""
    return load_model("tiny_b")


def hidden_of_row(model, kind, row):
    model.set_attn_implementation(kind)
    return hidden_states(model, FAMILY, row.inputs, groups=row.groups)


def hidden_of_samples(model, row):
    """Each sample in a forward pass of its own, with plain causal attention."""
    model.set_attn_implementation("sdpa")
    return [
        model.model(input_ids=row.ids[sample][None]).last_hidden_state[0] for sample in row.samples
    ]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS)
def test_a_packed_row_equals_its_separate_samples(model, kind, sizes):
    row = Row(sizes)
    packed = hidden_of_row(model, kind, row)
    alone = hidden_of_samples(model, row)
    scale = packed.abs().max().item()
    for sample, hidden in zip(row.samples, alone, strict=True):
        torch.testing.assert_close(packed[sample], hidden, atol=1e-5 * scale, rtol=0)

    # Any loss will do: each sample's hidden states against directions of its own.
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(hidden.shape, generator=generator) for hidden in alone]
    together = sum((packed[s] * d).sum() for s, d in zip(row.samples, directions, strict=True))
    apart = sum((h * d).sum() for h, d in zip(alone, directions, strict=True))
    ours, expected = gradients(model, together), gradients(model, apart)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (ours[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-5, f"{name}: {difference:.1e}"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_the_same_without_a_graph(model, monkeypatch):
    # Compiling takes minutes of a small machine and changes speed alone.
    from transformers.integrations import flex_attention as through

    def uncompiled(query, key, value, training=False, **arguments):
        return flex_attention(query, key, value, **arguments)

    monkeypatch.setattr(through, "compile_friendly_flex_attention", uncompiled)
    row = Row(GROUPS["all together"])
    with torch.no_grad():
        packed = hidden_of_row(model, "foveal_flex", row)
        expected = hidden_of_row(model, BLOCKS, row)
    torch.testing.assert_close(packed, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # of Python 3.13.0
@pytest.mark.slow
def test_ragged_rows_settle_on_few_graphs_of_flex_attention():
    # Past torch's limit of recompiling it would go on uncompiled, many times slower, in silence.
    counter = CompileCounter()
    compiled = torch.compile(flex_attention, backend=counter)
    drawn = random.Random(0)
    graphs = []
    for _ in range(30):
        sizes = [
            (drawn.randint(50, 300), [drawn.randint(5, 20) for _ in range(drawn.randint(0, 4))])
            for _ in range(drawn.randint(1, 4))
        ]
        groups = lay_out(sizes)
        mask = RowView(groups, CPU).block_mask(None)
        with torch.no_grad():
            compiled(*torch.randn(3, 1, 2, groups[-1].end, 16), block_mask=mask)
        graphs.append(counter.frame_count)
    assert graphs[-1] == graphs[14]
    assert graphs[-1] < torch._dynamo.config.recompile_limit


def test_who_sees_whom_is_what_a_hand_would_draw():
    # Prefix a b, branches c d and e; then an example f g beside it.
    groups = (GroupSpan(0, (2, 4), 5), GroupSpan(5, (), 7))
    drawn = """
        a . . . . . .
        a b . . . . .
        a b c . . . .
        a b c d . . .
        a b . . e . .
        . . . . . f .
        . . . . . f g
    """
    expected = torch.tensor([[c != "." for c in line.split()] for line in drawn.split("\n")[1:-1]])
    view = RowView(groups, CPU)
    owner, branch, place = (one.tolist() for one in view.places)
    assert owner == [0, 0, 0, 0, 0, 1, 1]
    assert branch == [0, 0, 1, 1, 2, 0, 0]
    assert place == [0, 1, 2, 3, 2, 0, 1]
    assert torch.equal(view.square(None)[0, 0], expected)
    assert torch.equal(view.branch_mask(groups[0], None)[0, 0], expected[2:5, :5])
    assert view.prefix_mask(groups[0], None) is None  # causal, without a square
    states = torch.zeros(3, 1, 1, 7, 4)
    added = FORMS["eager"][0](OwnAttention(), *states, None, row=view)[0][0, 0]
    assert torch.equal(added == 0, expected)
    assert (added[~expected] == torch.finfo(torch.float32).min).all()
    block_mask = view.block_mask(None)
    assert torch.equal(create_mask(block_mask.mask_mod, 1, 1, 7, 7, "cpu")[0, 0], expected)


class OwnAttention(torch.nn.Module):
    """A layer whose modelling file, this one, has the plain attention beside it."""


def eager_attention_forward(module, query, key, value, mask, **_):
    return mask, None


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_does_not_change_with_its_siblings_or_neighbours(model, kind):
    row = Row([(20, [5, 8, 12]), (30, [])])
    other = Row([(20, [5, 8, 12]), (30, [])])
    other.ids[25:33] = other.ids[25:33] % 400 + 50  # the second branch, then the neighbour
    other.ids[50:60] = other.ids[50:60] % 400 + 50
    with torch.no_grad():
        one, two = hidden_of_row(model, kind, row), hidden_of_row(model, kind, other)
    changed = (one - two).abs().amax(-1) > 0
    assert changed.tolist() == [False] * 25 + [True] * 8 + [False] * 12 + [False] * 5 + [True] * 25


def test_flash_attention_takes_rows_without_sharing_by_their_lengths():
    side_by_side = lay_out(GROUPS["side by side"])
    arguments = RowView(side_by_side, CPU).lengths()
    assert arguments["cu_seq_lens_q"].tolist() == [0, 7, 19, 22]
    assert arguments["max_length_k"] == 12
    with pytest.raises(ValueError, match="no form for shared rows"):
        RowView(lay_out([(3, [1])]), CPU).lengths()


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_an_unknown_kind_of_attention_is_refused(model, kind):
    with pytest.raises(ValueError, match=f"no packed rows with attention '{kind}'"):
        hidden_of_row(model, kind, Row([(3, [])]))


@pytest.mark.parametrize(
    ("name", "decoder", "tower"),
    [
        ("blocks", "foveal_blocks", "sdpa"),
        ("sdpa", "foveal_sdpa", "sdpa"),
        ("eager", "foveal_eager", "eager"),
        ("flex", "foveal_flex", "sdpa"),
        ("flash_attention_2", "foveal_flash_attention_2", "sdpa"),
    ],
)
def test_a_recipes_attention_is_named_for_the_decoder_and_the_tower(
    monkeypatch, name, decoder, tower
):
    monkeypatch.setattr(shared_rows, "is_flash_attn_2_available", lambda: True)
    assert choose_attention(name) == {"": decoder, "vision_config": tower}


@pytest.mark.parametrize("cuda", [True, False])
def test_the_automatic_attention_is_the_fastest_of_the_device(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_attention("auto") == choose_attention(FASTEST["cuda" if cuda else "cpu"])
    assert FASTEST["cpu"] == "blocks"


@pytest.mark.parametrize("side", ["left", "right"])
def test_blocks_attend_an_ordinary_batch_as_sdpa_does(model, side):
    ids = torch.randint(3, 500, (2, 30), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 9) if side == "left" else slice(-9, None)] = 0
    made = []
    for kind in (BLOCKS, "sdpa"):
        model.set_attn_implementation(kind)
        with torch.no_grad():
            made.append(model(input_ids=ids, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*made, atol=1e-5, rtol=0)
