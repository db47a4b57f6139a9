"""Folding an adapter in gives what peft itself gives, and what both layers gave together."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn

from foveal.deliver.merge import (
    Adapter,
    layer_kind,
    relative_norms,
    sort_adapters,
)
from foveal.errors import ModelError

RANK, ALPHA = 3, 7.0


def adapted(dtype: torch.dtype = torch.float32, **options):
    """A linear layer of peft's with random adapters, and the plain layer's own weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False, dtype=dtype))
    before = model[0].weight.detach().clone()
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], **options)
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return wrapped, before


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_merged_weight_equals_pefts_own_merge(rank_stabilized, use_dora):
    model, before = adapted(use_rslora=rank_stabilized, use_dora=use_dora)
    parts, others = sort_adapters(get_peft_model_state_dict(model))
    assert others == []
    assert set(parts["0"]) == {"down", "up"} | ({"magnitude"} if use_dora else set())
    merged = Adapter(**parts["0"]).merged_with(before, ALPHA, rank_stabilized)
    expected = model.merge_and_unload()[0].weight
    assert not torch.allclose(expected, before, atol=0.1)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoints_names_are_understood_as_pefts_files_are():
    model, _ = adapted(use_dora=True)
    in_memory, _ = sort_adapters({n: p for n, p in model.named_parameters() if "lora_" in n})
    in_files, _ = sort_adapters(get_peft_model_state_dict(model))
    assert in_memory.keys() == in_files.keys()
    for part, value in in_files["0"].items():
        assert value.flatten().equal(in_memory["0"][part].detach().flatten()), part


def test_a_small_merge_worked_by_hand():
    up, down = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0, 3.0]])
    merged = Adapter(down, up).merged_with(torch.eye(2), alpha=0.5)
    assert merged.tolist() == [[2.0, 1.5], [0.0, 1.0]]  # 0.5 / 1 * up down, beside the identity


def test_a_half_precision_base_is_merged_in_float32():
    up, down = torch.full((1, 1), 2.0**-5), torch.full((1, 1), 2.0**-5)
    weight = torch.ones(1, 1, dtype=torch.bfloat16)  # 1 + 2**-10 is no bfloat16
    merged = Adapter(down, up).merged_with(weight, 1.0)
    assert merged.dtype == torch.float32
    assert merged.item() == 1 + 2.0**-10


def test_half_an_adapter_is_named():
    with pytest.raises(ModelError, match=r"adapter of model.layers.0.mlp.down_proj holds down"):
        sort_adapters({"model.layers.0.mlp.down_proj.lora_A.default.weight": 0})


def test_whole_weights_are_told_from_adapters():
    names = ["a.lora_A.default.weight", "a.lora_B.default.weight", "model.norm.weight"]
    adapters, others = sort_adapters(dict.fromkeys(names, 0))
    assert list(adapters) == ["a"]
    assert others == ["model.norm.weight"]


def test_differences_are_measured_per_kind_of_layer():
    pairs = [
        ("layers.0.up", torch.tensor([3.0]), torch.tensor([3.0])),
        ("layers.1.up", torch.tensor([4.0]), torch.tensor([4.5])),
        ("head", torch.tensor([2.0]), torch.tensor([1.0])),
    ]
    assert relative_norms(pairs) == {"layers.*.up": 0.1, "head": 0.5}
    assert layer_kind("img_projection.2") == "img_projection.*"
