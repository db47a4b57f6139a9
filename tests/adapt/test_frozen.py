"""Frozen weights in the format of the passes change no bit of what is learnt."""

import pytest
import torch
from tiny import make_model
from tiny_models import write_tiny
from torch import nn

from foveal.adapt.strategy import assign, hold_frozen_weights, rules_of
from foveal.config import LoraSettings
from foveal.models.loading import load


def tied_model(folder):
    loaded = load(str(write_tiny("gemma3", folder)), None)
    text = loaded.model.model.language_model
    assert loaded.model.lm_head.weight is text.embed_tokens.weight
    return loaded


def gradients(folder, strategy, hold, make=make_model):
    loaded = make(folder)
    torch.manual_seed(1)
    assign(loaded.model, loaded.family, rules_of(strategy), 1e-3, 0.0, LoraSettings(rank=4))
    for name, one in loaded.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(one, std=0.1)  # zero, it would hide what stands before it
    if hold:
        hold_frozen_weights(loaded.model, torch.bfloat16)
    ids = torch.arange(3, 60)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loaded.model(ids, labels=ids).loss
    loss.backward()
    learnt = {
        name: one.grad
        for name, one in loaded.model.named_parameters()
        if one.requires_grad and one.grad is not None
    }
    return loaded.model, loss, learnt


@pytest.mark.parametrize(
    ("make", "strategy"),
    [(make_model, "lora"), (make_model, "frozen_vision"), (tied_model, "lora")],
)
def test_loss_and_gradients_are_the_same_bits(tmp_path, make, strategy):
    _, plain_loss, plain = gradients(tmp_path / "model", strategy, hold=False, make=make)
    _, loss, held = gradients(tmp_path / "model", strategy, hold=True, make=make)
    assert torch.equal(loss, plain_loss)
    assert plain
    assert plain.keys() == held.keys()
    assert all(torch.equal(one, held[name]) for name, one in plain.items())


def test_only_frozen_matrices_of_linear_layers_change_their_format(tmp_path):
    model, _, _ = gradients(tmp_path / "model", "lora", hold=True)
    formats = {name: one.dtype for name, one in model.named_parameters()}
    qkv = "model.layers.0.self_attn.qkv_proj"
    assert formats[f"{qkv}.base_layer.weight"] == torch.bfloat16
    assert formats[f"{qkv}.lora_A.default.weight"] == torch.float32
    assert formats["model.embed_tokens.weight"] == torch.float32
    assert formats["model.norm.weight"] == torch.float32
