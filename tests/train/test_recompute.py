"""What is made again in the backward pass saves memory, and changes no gradient."""

import gc
from dataclasses import replace

import pytest
import torch
from daily import daily
from foveal_bench import contender
from foveal_bench.contender import Case, Contender
from foveal_bench.random_page import SIZES, LetterProcessor
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from foveal.config import LoraSettings
from foveal.models.phi3_vision.seam import FAMILY
from foveal.plan.model_costs.asked import AskedModel
from foveal.plan.model_costs.work import Ask
from foveal.train.recompute import DearOutputs

WIDE = replace(
    SIZES["tiny"], tower_width=128, width=256, mlp=683, heads=4, layers=4, tower_layers=5,
    vocabulary=160,
)  # fmt: skip
"""Of the published model's proportions, so that blocks hold nearly all that is kept."""

LORA = LoraSettings(rank=8, alpha=16)
"""A sixteenth of the tower's width, as 64 is of the published model's."""


class Alive(TorchDispatchMode):
    """Knows all storages that were made under it, and which of them are still there."""

    def __init__(self, model):
        super().__init__()
        self.made = {}
        self.weights = {one.untyped_storage().data_ptr() for one in model.parameters()}

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        made = operation(*arguments, **(named or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                if storage.data_ptr() not in self.weights:
                    held = StorageWeakRef(storage)
                    self.made[held.cdata] = held, storage.nbytes()
        return made

    @property
    def num_bytes(self):
        gc.collect()
        return sum(size for held, size in self.made.values() if not held.expired())


def saved_bytes(strategy, questions, way, precision, folder, monkeypatch):
    """Bytes that a forward pass leaves behind, and what a plan says of them."""
    monkeypatch.setitem(SIZES, "wide", WIDE)
    monkeypatch.setattr(contender, "LORA", LORA)
    one = Contender(Case("wide", strategy, questions, way, precision), folder)
    one.step()  # the first one shows which products are not asked for again
    with Alive(one.model) as alive, one.engine.autocast():
        loss = one.way(one.rows[0])
    found = alive.num_bytes
    assert loss.requires_grad
    return found, one


@pytest.mark.parametrize("questions", daily(4, beside=[1]))
@pytest.mark.parametrize(
    ("strategy", "precision", "most"),
    [
        pytest.param("full", "float32", 0.6, marks=pytest.mark.slow),
        pytest.param("frozen_vision", "float32", 0.6, marks=pytest.mark.slow),
        pytest.param("lora", "bf16", 0.6, marks=pytest.mark.slow),
        # Whose layers keep no copies of weights to be spared.
        pytest.param("lora", "float32", 0.66, marks=pytest.mark.slow),
    ],
)
def test_light_keeps_little_more_than_half(
    tmp_path, monkeypatch, strategy, precision, most, questions
):
    given = strategy, questions
    whole, _ = saved_bytes(*given, "shared", precision, tmp_path, monkeypatch)
    light, one = saved_bytes(*given, "light", precision, tmp_path, monkeypatch)
    assert 0.2 * whole < light <= most * whole
    processor = LetterProcessor(SIZES["wide"])
    model = AskedModel(one.model.config, FAMILY, processor, strategy, LORA)
    costs = model.costs(Ask(precision, "blocks", "light"))
    assert costs.saved_bytes(one.counts[0]) == pytest.approx(light, rel=0.1)


class Sum(nn.Module):
    """Two layers and their input, added up, with or without a norm between."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()

    def forward(self, inputs):
        return inputs + self.norm(self.second(torch.relu(self.first(inputs))))


@pytest.mark.parametrize("norm", [False, True])
def test_a_last_product_is_kept_only_where_something_behind_it_asks_for_it(norm):
    block, dear = Sum(norm), DearOutputs(frozenset())
    inputs = torch.randn(4, 8, requires_grad=True)
    for _ in range(3):
        out = checkpoint(block, inputs, use_reentrant=False, context_fn=dear.contexts)
        out.sum().backward()
    assert dear.products == 2
    dear.contexts()
    assert dear.needs_last is norm


@pytest.mark.parametrize(
    "name", ["flash_attention_for_cpu", "flash_attention", "efficient_attention"]
)
def test_attention_is_kept_unless_it_drops_at_random(name):
    """What it drew would not be drawn again, and all behind it would draw other numbers."""
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default
    places = [one.name for one in operation._schema.arguments]
    dear, states = DearOutputs(frozenset()), [torch.randn(1, 2, 5, 8)] * 3
    given = [*states, *[None] * (places.index("dropout_p") - 3)]
    for arguments, named, policy in (
        (states, {}, "MUST_SAVE"),
        ([*given, 0.0], {}, "MUST_SAVE"),
        ([*given, 0.5], {}, "PREFER_RECOMPUTE"),
        (states, {"dropout_p": 0.5}, "PREFER_RECOMPUTE"),
    ):
        assert dear.decide(None, operation, *arguments, **named).name == policy


def test_a_square_of_scores_is_made_again_and_what_it_weighs_is_kept():
    dear = DearOutputs(frozenset({(4, 32)}))
    queries, scores, values = torch.randn(2, 40, 2), torch.randn(2, 40, 40), torch.randn(2, 40, 2)
    product, plain = torch.ops.aten.bmm.default, torch.ops.aten.mm.default
    for operation, sides, is_saved in (
        (product, (queries, queries.mT), False),
        (product, (scores, values), True),
        (plain, (torch.randn(5, 4), torch.randn(4, 32)), False),  # an adapter's second half
        (plain, (torch.randn(5, 4), torch.randn(4, 31)), True),
        (torch.ops.aten.add.Tensor, (scores, scores), False),
    ):
        assert (dear.decide(None, operation, *sides).name == "MUST_SAVE") is is_saved
