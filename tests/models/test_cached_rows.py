"""Decoders that carry a state share prefixes, and give what each example gives alone."""

from copy import copy
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
import torch.nn.functional as F
from daily import daily
from PIL import Image
from tiny import make_image, turn, write_data
from tiny_models import let_attention_matter, write_tiny
from transformers import (
    AutoModelForImageTextToText,
    DynamicCache,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Qwen3Config,
)

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.encode import IGNORED
from foveal.data.forward_inputs import GroupSpan
from foveal.data.row_planning.groups import Row
from foveal.data.rows import RowPlanner
from foveal.errors import ModelError
from foveal.models.cached_rows import (
    read,
    read_groups,
    reads_with_cache,
    recompute_with_cache,
    repeat,
)
from foveal.models.hub.hub_processor import load_hub_processor
from foveal.models.loading import load, rows_are_exact
from foveal.train.loss import RowLoss
from foveal.train.recompute import recompute_blocks

RECURRENT = daily("qwen3_5", beside=["lfm3_vl", "qwen3_5_moe"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of tiny models, written once."""

    @lru_cache
    def make(name):
        return write_tiny(name, tmp_path_factory.mktemp(name))

    return make


def conversations(folder):
    """Examples of every kind: one to five questions a page, several images, turns, words alone."""
    pages = [f"{one}.png" for one in range(4)]
    for number, page in enumerate(pages):
        make_image(folder / "images" / page, number, (96 + 32 * number, 96))
    questions = [
        ("What number is it?", "one"),
        ("What is written in the second line of this page?", "a red circle and a blue square"),
        ("Yes?", "no"),
        ("Which number stands beside the total?", "it is number one of four"),
        ("Three of them? " * 30, "three"),
    ]
    asked = [[turn(*questions[0], [pages[0]])]]
    asked += [[turn(*one, [pages[1]])] for one in questions]
    asked += [[turn(*one, [pages[2], pages[1]])] for one in questions[1:3]]
    asked += [
        [turn(*questions[3], [pages[3]]), turn("And the other?", "a blue square", [pages[0]])],
        [turn(*questions[1]), turn("Is it?", "yes")],
        [turn(*questions[3])],
        [turn("?", "!")],
    ]
    return write_data(folder / "data.jsonl", asked), asked


def with_doubles(model):
    """Compute in float64; the quick ways of a mixture of experts take no such numbers."""
    model.config.get_text_config()._experts_implementation = "eager"
    return model.double()


def row_losses(loaded, dataset, *, share, tokens_per_pass=100_000):
    """Summed loss, tokens read, and gradients of one step that holds all examples."""
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=len(dataset.examples),
        tokens_per_pass=tokens_per_pass,
        share_images=share,
        long_context_tokens=None,
    )
    return losses_of(loaded, dataset, plan.step(0).ranks[0])


def losses_of(loaded, dataset, rows):
    module = RowLoss(loaded.model, loaded.family)
    loaded.model.zero_grad()
    total, tokens = 0.0, 0
    for row in rows:
        batch = build_batch(row, dataset, loaded.processor)
        batch = replace(batch, pixels=doubled(batch.pixels))
        value = module(batch)
        value.backward()
        total += value.item()
        tokens += batch.input_ids.numel()
    return total, tokens, gradients(loaded.model)


def doubled(tensors):
    return {name: one.double() if one.is_floating_point() else one for name, one in tensors.items()}


def gradients(model):
    named = model.named_parameters()
    return {name: one.grad.clone() for name, one in named if one.grad is not None}


def losses_alone(folder, dataset, asked, pages):
    """What transformers makes of each conversation by itself, through its own processor."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float32
    )
    with_doubles(model).train()
    processor = load_hub_processor(str(folder))
    total = 0.0
    for number, turns in enumerate(asked):
        messages, images = [], []
        for one in turns:
            shown = [Image.open(pages / page).convert("RGB") for page in one["images"]]
            images += shown
            parts = [{"type": "image"} for _ in shown] + [{"type": "text", "text": one["user"]}]
            messages += [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": one["assistant"]}]},
            ]
        text = processor.apply_chat_template(messages)
        inputs = processor(text=[text], images=images or None, return_tensors="pt")
        encoded = dataset.examples[number]
        shapes = [dataset.images[image].shape for image in dataset.image_numbers(number)]
        expanded = encoded.expand(shapes)
        length = len(expanded.ids)  # a template may put more behind the end of the last answer
        assert inputs["input_ids"][0, :length].tolist() == expanded.ids.tolist()
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        learnt = torch.from_numpy(expanded.learnt)
        labels[0, :length][learnt] = inputs["input_ids"][0, :length][learnt]
        logits = model(**doubled(inputs)).logits
        loss = F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum")
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_same(total, ours, expected_total, expected):
    assert total == pytest.approx(expected_total, rel=1e-12)
    assert ours.keys() == expected.keys()
    largest = max(float(one.norm()) for one in expected.values())
    for name, gradient in expected.items():
        # Of what vanishes by arithmetic, rounding is all there is.
        scale = max(float(gradient.norm()), 1e-9 * largest)
        assert float((ours[name] - gradient).norm()) / scale < 1e-10, name


@pytest.fixture(scope="module", params=RECURRENT)
def case(request, made, in_double, tmp_path_factory):
    """A model in training, a data set, and what transformers alone makes of it."""
    folder = made(request.param)
    path, asked = conversations(tmp_path_factory.mktemp("data"))
    loaded = load(str(folder), None)
    with_doubles(loaded.model)
    _, dataset = read_dataset(path, loaded.processor)
    alone = losses_alone(folder, dataset, asked, path.parent / "images")
    return loaded, dataset, alone


@pytest.fixture
def loaded(case):
    case[0].model.train()
    return case[0]


def test_a_shared_row_is_what_transformers_makes_of_each_example_alone(case, loaded):
    _, dataset, alone = case
    total, tokens, found = row_losses(loaded, dataset, share=True)
    _, separate, _ = row_losses(loaded, dataset, share=False)
    assert tokens < separate - 80  # it did share
    assert_same(total, found, *alone)


def test_separate_samples_side_by_side_are_what_transformers_makes_of_each_alone(case, loaded):
    _, dataset, alone = case
    total, _, found = row_losses(loaded, dataset, share=False)
    assert_same(total, found, *alone)


def test_a_process_with_less_to_read_reads_nothing_as_often_as_others_read(case, loaded):
    _, dataset, _ = case
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=8,
        tokens_per_pass=100_000,
        share_images=True,
        long_context_tokens=None,
    )
    (row,) = plan.step(0).ranks[0]
    batch = build_batch(row, dataset, loaded.processor)
    batch = replace(batch, pixels=doubled(batch.pixels))
    runs = []
    loaded.model.get_decoder().register_forward_hook(lambda *_: runs.append(1))
    value = RowLoss(loaded.model, loaded.family)(batch).item()
    own = len(runs)
    evened = RowLoss(loaded.model, loaded.family, most_of_all=lambda reads: reads + 3)
    assert evened(batch).item() == pytest.approx(value, rel=1e-12)
    assert own == batch.reads
    assert len(runs) - own == batch.reads + 3


@pytest.mark.parametrize("share", daily(True, beside=[False]))
def test_running_layers_again_in_the_backward_pass_changes_nothing(case, share):
    loaded, dataset, alone = case
    recomputed = load(loaded.model.name_or_path, None)
    recompute_blocks(with_doubles(recomputed.model).train(), recomputed.family)
    runs = []
    for model in (loaded.model, recomputed.model):
        part = next(model.get_decoder().layers[0].children())
        part.register_forward_hook(lambda *_, model=model: runs.append(model))
    row_losses(loaded, dataset, share=share)
    total, _, found = row_losses(recomputed, dataset, share=share)
    assert_same(total, found, *alone)
    assert runs.count(recomputed.model) == 2 * runs.count(loaded.model)  # it did run again


def test_each_question_about_a_page_costs_its_own_tokens_alone(case, loaded):
    _, dataset, _ = case
    read = []
    hook = loaded.model.model.register_forward_pre_hook(
        lambda *given: read.append(tuple(given[-1]["input_ids"].shape)), with_kwargs=True
    )
    plan = RowPlanner(
        dataset.sizes, examples_per_step=len(dataset.examples), tokens_per_pass=100_000
    )
    groups = [group for row in plan.step(0).ranks[0] for group in row.groups]
    largest = max(groups, key=lambda group: len(group.examples))
    losses_of(loaded, dataset, [Row((largest,))])
    hook.remove()
    own = largest.branch_tokens(dataset.sizes)
    assert len(own) == 5
    assert read == [(1, largest.prefix_tokens), (5, max(own))]


def test_going_on_from_a_copy_leaves_what_a_cache_holds_alone(made):
    loaded = load(str(made("qwen3_5")), None)
    model, ids = loaded.model.eval(), torch.arange(3, 12)[None]
    cache = DynamicCache(config=model.config)
    places = torch.arange(12)[None, None].expand(3, 1, 12)
    with torch.no_grad():
        read(model, ids, places[..., :9], None, cache)
        held = [states_of(layer) for layer in cache.layers]
        before = [[one.clone() for one in states] for states in held]
        copied = copy(cache)
        copied.layers = list(cache.layers)
        repeat(copied, 2)
        for tokens in (2, 1):  # many at once go another way through the model than one
            read(
                model,
                ids[:, :tokens].expand(2, -1),
                places[..., :tokens].expand(-1, 2, -1),
                None,
                copied,
            )
    for states, expected in zip(held, before, strict=True):
        assert all(map(torch.equal, states, expected))


def states_of(layer):
    tensors = [*vars(layer).values(), *getattr(layer, "conv_states", {}).values()]
    tensors += getattr(layer, "recurrent_states", {}).values()
    return [one for one in tensors if isinstance(one, torch.Tensor)]


def lfm2_vl():
    """Its images need torchvision; its words do not."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": 64,
        "num_key_value_heads": 1,
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
    }
    tower = {**sizes, "model_type": "siglip2_vision_model", "num_hidden_layers": 1}
    config = Lfm2VlConfig(text_config=text, vision_config=tower, image_token_id=63)
    return let_attention_matter(Lfm2VlForConditionalGeneration(config).double(), 0)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    "sizes",
    daily((1, [3, 1, 70]), (70, [5, 66]), beside=[((9, [1, 1]),), ((9, [1]),), ((2, [4]),)]),
)
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl"])
def test_prefixes_and_branches_of_any_length_are_exact(made, in_double, name, sizes, again):
    if name == "lfm2_vl":
        model = lfm2_vl()
    else:
        model = load(str(made(name)), None, dtype=torch.float64).model
    prefix, branches = sizes
    ends = [prefix, *(prefix + end for end in accumulate(branches))]
    group = GroupSpan(0, tuple(ends[:-1]), ends[-1])
    ids = torch.randint(3, 60, (group.end,), generator=torch.Generator().manual_seed(0))
    own = [list(range(prefix)) + list(range(start, end)) for start, end in group.branches]
    places = [
        place for start, end in group.branches for place in range(prefix, prefix + end - start)
    ]
    positions = torch.tensor([[*range(prefix), *places]])
    directions = torch.randn(
        group.end, model.config.get_text_config().hidden_size, generator=torch.Generator()
    ).double()

    expected = []
    for sample in own:
        hidden = model.model(input_ids=ids[sample][None], use_cache=False).last_hidden_state[0]
        expected.append(hidden)
        (hidden * directions[sample]).sum().backward()
    wanted = gradients(model)

    model.zero_grad()
    model.train()
    if again:
        model.activation_checkpointing_enable({"use_reentrant": False})
        recompute_with_cache(model)
    hidden = read_groups(model, ids, positions, [group], images=lambda *_: None)
    sum((hidden[sample] * directions[sample]).sum() for sample in own).backward()
    for sample, one in zip(own, expected, strict=True):
        torch.testing.assert_close(hidden[sample], one, rtol=1e-10, atol=1e-10)
    assert_same(0.0, gradients(model), 0.0, wanted)


class Recurrent(torch.nn.Module):
    """Says of itself that it carries a state."""

    _is_stateful = True


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["full_attention", "sliding_attention"], False),
        (["full_attention", "moe"], False),
        (["linear_attention", "full_attention"], True),
        (["conv", "sliding_attention"], True),
        (["hybrid", "hybrid_sliding"], True),
    ],
)
def test_a_decoder_is_read_as_its_layers_ask(kinds, expected):
    config = Qwen3Config(num_hidden_layers=len(kinds), sliding_window=8)
    config.layer_types = kinds
    assert reads_with_cache("m", config, torch.nn.Module()) is expected


@pytest.mark.parametrize("name", RECURRENT)
def test_such_a_model_is_found_by_itself_and_rows_of_attention_would_be_seen_to_be_wrong(
    made, name
):
    loaded = load(str(made(name)), None)
    assert (loaded.family.route, loaded.note) == ("cache", None)
    loaded.model.eval()
    assert rows_are_exact(loaded)
    as_rows = copy(loaded.family)
    as_rows.route = "rows"
    assert not rows_are_exact(replace(loaded, family=as_rows))


def test_layers_of_unknown_kinds_are_refused_in_one_line():
    config = Qwen3Config(num_hidden_layers=2)
    config.layer_types = ["indexed_attention", "full_attention"]
    with pytest.raises(ModelError, match=r"model m: .* of the kind 'indexed_attention'"):
        reads_with_cache("m", config, torch.nn.Module())


@pytest.mark.parametrize("decoder", [Recurrent(), torch.nn.Sequential(torch.nn.Conv1d(2, 2, 3))])
def test_a_state_that_the_configuration_does_not_speak_of_is_refused(decoder):
    config = Qwen3Config(num_hidden_layers=2, layer_types=None)
    with pytest.raises(ModelError, match=r"model m: .* carries a state"):
        reads_with_cache("m", config, decoder)
