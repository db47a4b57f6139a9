"""What the count of kept activations promises; autograd's own saved tensors are the truth."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from foveal.adapt.strategy import assign, rules_of
from foveal.bench.random_page import SIZES, LetterProcessor, make_model, make_random_page
from foveal.config import LoraSettings
from foveal.data.batch import build_batch
from foveal.data.rows import Plan
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.shared_rows import choose_attention
from foveal.plan.activations import kept_for_backward
from foveal.plan.arithmetic import strategy_of
from foveal.plan.epoch import count_row, targets_of
from foveal.train.loss import RowLoss
from foveal.train.recompute import recompute_blocks

SIZE, RANK = SIZES["tiny"], 4


@pytest.fixture(scope="module", params=[1, 4], ids=["a question", "four questions"])
def page(request, tmp_path_factory):
    dataset = make_random_page(SIZE, request.param, tmp_path_factory.mktemp("page"))
    plan = Plan(dataset.sizes, examples_per_step=4, tokens_per_pass=SIZE.tokens_per_pass)
    row = plan.step(0).ranks[0][0]
    batch = build_batch(row, dataset, LetterProcessor(SIZE))
    return batch, count_row(row, dataset.sizes, targets_of(dataset.examples))


@pytest.mark.parametrize("recompute", ["none", "blocks"])
@pytest.mark.parametrize("strategy", ["full", "frozen_vision", "lora"])
def test_a_float32_pass_keeps_what_was_counted(page, strategy, recompute):
    batch, counts = page
    kept = kept_for_backward(_config(), strategy_of(strategy, RANK), counts, 4, "blocks")
    found = _saved_bytes(batch, strategy, recompute=recompute)
    # In recomputed layers the rotation hangs on a closure that hooks do not see.
    seen = kept.held_bytes(recompute) - (kept.rotation_bytes if recompute == "blocks" else 0)
    assert seen == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize(
    ("strategy", "attention"), [("full", "blocks"), ("lora", "blocks"), ("full", "eager")]
)
def test_a_bf16_pass_keeps_what_was_counted_and_copies_of_the_weights(page, strategy, attention):
    batch, counts = page
    kept = kept_for_backward(_config(), strategy_of(strategy, RANK), counts, 2, attention)
    found = _saved_bytes(batch, strategy, attention, torch.bfloat16)
    assert kept.total_bytes == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_kinds_of_attention_keep_more(page, attention):
    batch, counts = page
    strategy = strategy_of("full", RANK)
    kept = kept_for_backward(_config(), strategy, counts, 4, attention).total_bytes
    assert kept == pytest.approx(_saved_bytes(batch, "full", attention), rel=0.05)
    assert kept > kept_for_backward(_config(), strategy, counts, 4, "flex").total_bytes


def _config():
    return make_model(SIZE).config


def _saved_bytes(batch, strategy, attention="blocks", dtype=torch.float32, recompute="none"):
    """Bytes of distinct storages that the forward pass saves, weights and their copies aside."""
    model = make_model(SIZE)
    model.set_attn_implementation(choose_attention(attention))
    assign(model, FAMILY, rules_of(strategy), 1e-4, 0.01, LoraSettings(rank=RANK))
    if recompute != "none":
        recompute_blocks(model, FAMILY, recompute)
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    shapes = {tuple(one.shape) for one in model.parameters() if one.dim() > 1}
    shapes |= {shape[::-1] for shape in shapes}
    storages, alive = {}, []

    def pack(tensor):
        alive.append(tensor)  # so that no other storage comes to stand at its place
        storage = tensor.untyped_storage()
        copy = tensor.dtype != torch.float32 and tuple(tensor.shape) in shapes
        if storage.data_ptr() not in weights and not copy:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    mixed = dtype != torch.float32
    with (
        saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        RowLoss(model, FAMILY).train()(batch)
    return sum(storages.values())
