"""Optimizers are those that the recipe names, and rates follow its schedule."""

import pytest
import torch
from tiny import make_model
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings, TrainSettings
from foveal.errors import ConfigError
from foveal.train.checkpoint import (
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from foveal.train.engines.fsdp2 import ShardedEngine
from foveal.train.engines.one_process import Engine
from foveal.train.engines.zero2 import ZeroEngine
from foveal.train.optim import build_optimizer, rate_scale, set_rate


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_the_rate_is_that_of_transformers_at_every_step(schedule, theirs):
    settings = TrainSettings(schedule=schedule, warmup_steps=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = theirs(optimizer, 5, 30)
    for step in range(30):
        expected = optimizer.param_groups[0]["lr"]
        assert 0.5 * rate_scale(step, 30, settings) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_each_group_keeps_its_own_peak():
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(
        [{"params": [one], "lr": 1.0, "peak": 1.0}, {"params": [two], "lr": 0.1, "peak": 0.1}]
    )
    assert set_rate(optimizer, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def begin(folder, optimizer, strategy="full", cuts_state=False):
    loaded = make_model(folder)
    lora = LoraSettings(rank=4)
    chosen = assign(loaded.model, loaded.family, rules_of(strategy), 1e-2, 0.01, lora)
    settings = TrainSettings(optimizer=optimizer)
    return loaded.model, build_optimizer(loaded.model, chosen, settings, cuts_state)


def take_steps(model, optimizer, steps):
    """Steps on gradients that hang on the step alone."""
    for step in steps:
        torch.manual_seed(step)
        for one in model.parameters():
            one.grad = torch.randn_like(one) if one.requires_grad else None
        set_rate(optimizer, 1 / (1 + step))
        optimizer.step()


# Beside bf16 weights too: torch 2.13.0 casts loaded moments to the format of the weight (optim/
# optimizer.py, _process_value_according_to_param_policy), and transformers 5.23.0's Adafactor
# keeps float32, so that by itself it goes on otherwise than if it had not been stopped.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor", "muon"])
def test_an_optimizer_that_was_saved_goes_on_as_if_it_had_not_been(
    folder, tmp_path, optimizer, dtype
):
    whole, steady = begin(folder, optimizer)
    take_steps(whole.to(dtype), steady, range(4))
    stopped, before = begin(folder, optimizer)
    take_steps(stopped.to(dtype), before, range(2))
    progress = Progress(2, {}, "", 1)
    saved = save_checkpoint(tmp_path / "checkpoints", progress, stopped, before, Engine())
    resumed, after = begin(folder, optimizer)
    load_checkpoint(saved, resumed.to(dtype), after, Engine())
    take_steps(resumed, after, range(2, 4))
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
    ours = dict(Engine().optimizer_state(whole, steady))
    theirs = dict(Engine().optimizer_state(resumed, after))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name


def bytes_a_weight(optimizer):
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for slot, value in state.items()
        if isinstance(value, torch.Tensor) and not slot.startswith("qmap")
    )
    return kept / sum(one.numel() for one in optimizer.state)


def test_optimizers_keep_what_their_names_say(folder):
    kept = {}
    for name in ("adamw", "adamw_8bit", "adafactor"):
        model, optimizer = begin(folder, name)
        take_steps(model, optimizer, range(1))
        kept[name] = bytes_a_weight(optimizer)
    assert kept["adamw"] == pytest.approx(8, rel=0.01)
    # Tensors of less than 4,096 numbers keep 32 bits, and those are many in a tiny model.
    assert kept["adamw_8bit"] < 0.7 * kept["adamw"]
    assert kept["adafactor"] < 0.1 * kept["adamw"]


def test_eight_bit_moments_take_nearly_the_steps_of_whole_ones(folder):
    whole, packed = begin(folder, "adamw"), begin(folder, "adamw_8bit")
    start = whole[0].lm_head.weight.detach().clone()
    for model, optimizer in (whole, packed):
        take_steps(model, optimizer, range(3))
    moved, also = (model.lm_head.weight.detach() - start for model, _ in (whole, packed))
    assert float((moved - also).norm() / moved.norm()) < 0.05


def test_adamw_is_fused(folder):
    assert begin(folder, "adamw")[1].defaults["fused"] is True


@pytest.mark.parametrize("engine", [ShardedEngine, ZeroEngine])
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adafactor", "muon"])
def test_engines_that_cut_weights_or_moments_need_adamw(folder, optimizer, engine):
    with pytest.raises(ConfigError, match=f"train.optimizer={optimizer} needs whole weights"):
        begin(folder, optimizer, cuts_state=engine.cuts_state)


def test_muon_moves_a_hidden_matrix_the_same_way_in_every_direction(folder):
    model, optimizer = begin(folder, "muon")
    name = "model.layers.0.self_attn.o_proj.weight"
    start = {key: one.detach().clone() for key, one in model.named_parameters()}
    take_steps(model, optimizer, range(1))
    moved = dict(model.named_parameters())[name].detach() - start[name] * (1 - 1e-2 * 0.01)
    rate = 1e-2 * 0.2 * max(moved.shape) ** 0.5
    directions = torch.linalg.svdvals(moved) / rate
    # Five Newton-Schulz steps bring all but the smallest singular values near one.
    assert float(directions.max()) < 1.3
    assert float(directions.quantile(0.1)) > 0.6


def test_muon_leaves_embeddings_head_and_norms_to_adamw(folder):
    ends = {}
    for optimizer in ("muon", "adamw"):
        model, built = begin(folder, optimizer)
        take_steps(model, built, range(3))
        ends[optimizer] = dict(model.named_parameters())
    same = {
        name
        for name, one in ends["adamw"].items()
        if torch.allclose(one, ends["muon"][name], rtol=1e-5, atol=1e-7)
    }
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= same
    assert "model.layers.0.mlp.down_proj.weight" not in same
