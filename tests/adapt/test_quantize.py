"""Rules say which layers are held in 4 bits; reading them in is all that it takes."""

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from bitsandbytes import functional as bits
from bitsandbytes.nn import Linear4bit, Params4bit
from tiny import SIZES, WHOLE_BLOCKS, make_model
from tiny_models import write_tiny as write_a_family

from foveal.adapt.quantize import plan_quantization, quantized_layers, skeleton
from foveal.adapt.strategy import assign, rules_of, summarize
from foveal.config import LoraSettings, QuantizationSettings, Rule
from foveal.errors import ConfigError
from foveal.inputs import quiet_libraries
from foveal.models.few_bits import is_quantized
from foveal.models.loading import find_family, load
from foveal.models.phi3_vision.tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    quiet_libraries()
    place = tmp_path_factory.mktemp("quantize") / "model"
    write_tiny(place, 0, SIZES)
    return place


def quantized(folder, strategy="qlora", precision="float32", **settings):
    chosen = QuantizationSettings(**settings)
    plan = plan_quantization(str(folder), rules_of(strategy), chosen, precision)
    return load(str(folder), 4, quantization=plan)


def in_four_bits(model):
    return {name for name, one in model.named_modules() if isinstance(one, Linear4bit)}


def linear_layers(model):
    return {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}


def test_qlora_holds_every_linear_layer_but_the_head_in_four_bits(folder):
    model = quantized(folder).model
    assert in_four_bits(model) == linear_layers(make_model(folder).model) - {"lm_head"}
    assert is_quantized(model)


def test_norms_separators_embeddings_biases_and_the_head_stay_as_they_are(folder):
    whole = dict(make_model(folder).model.named_parameters())
    packed = 0
    for name, one in quantized(folder).model.named_parameters():
        if isinstance(one, Params4bit):
            packed += 1
        else:
            assert torch.equal(one, whole[name]), name
    assert 0 < packed < len(whole)
    assert not any(isinstance(one, Params4bit) for one in make_model(folder).model.parameters())


@pytest.mark.parametrize("double", [True, False])
def test_a_layer_holds_what_bitsandbytes_makes_of_its_stored_weight(folder, double):
    stored = make_model(folder).model.model.layers[1].mlp.down_proj.weight.detach()
    packed, state = bits.quantize_4bit(stored, quant_type="nf4", compress_statistics=double)
    held = quantized(folder, double=double).model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(held.data, packed)
    assert held.quant_state.nested is double
    expected = bits.dequantize_4bit(packed, state)
    assert torch.equal(bits.dequantize_4bit(held.data, held.quant_state), expected)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({}, torch.bfloat16), ({"compute": "float32"}, torch.float32)],
)
def test_layers_compute_in_the_runs_precision_unless_told_otherwise(folder, settings, dtype):
    layer = quantized(folder, precision="bf16", **settings).model.model.layers[0].mlp.down_proj
    assert layer.compute_dtype == dtype


def test_rules_choose_the_layers(folder):
    rules = (
        Rule(match="vision.*", learn=False),
        Rule(match="language.layers.1.*", learn=False, quantize=True),
        Rule(match="*", learn=False, adapter=True),
    )
    layers = in_four_bits(quantized(folder, rules).model)
    assert layers == {
        f"model.layers.1.{name}"
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }


@pytest.mark.parametrize(
    ("family", "reads_patches", "in_four_bits"),
    [
        ("ernie4_5_vl_moe", "model.vision_tower.patch_embed.proj", False),
        ("gemma4", "model.vision_tower.patch_embedder.input_proj", True),
    ],
)
def test_a_layer_to_whose_weight_pixels_are_cast_stays_whole(
    family, reads_patches, in_four_bits, tmp_path
):
    folder = str(write_a_family(family, tmp_path))
    chosen = quantized_layers(skeleton(folder), find_family(folder), rules_of("qlora"))
    assert (reads_patches in chosen) is in_four_bits
    assert any(name.startswith("model.vision_tower.") for name in chosen)


def test_experts_in_one_tensor_stay_in_the_formats_they_were_loaded_in(tmp_path):
    folder = str(write_a_family("qwen3_vl_moe", tmp_path))
    plan = plan_quantization(folder, rules_of("qlora"), QuantizationSettings(), "bf16")
    weights = dict(
        load(folder, 4, dtype=torch.bfloat16, quantization=plan).model.named_parameters()
    )
    experts = {name: one for name, one in weights.items() if ".experts." in name}
    assert {one.dtype for one in experts.values()} == {torch.bfloat16}
    attention = weights["model.language_model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(attention, Params4bit)


def test_strategies_without_four_bits_load_as_ever(folder):
    assert plan_quantization(str(folder), rules_of("lora"), QuantizationSettings(), "bf16") is None


def test_the_table_counts_packed_weights_one_by_one(folder):
    loaded = quantized(folder)
    chosen = assign(loaded.model, loaded.family, rules_of("qlora"), 1e-3, 0.0, LoraSettings(rank=4))
    counts = summarize(chosen)
    frozen = sum(count for fate, count in counts.items() if fate.what.startswith("frozen"))
    assert frozen == sum(one.numel() for one in make_model(folder).model.parameters())
    packed = sum(count for fate, count in counts.items() if fate.what == "frozen, 4 bits")
    assert packed == sum(
        layer.in_features * layer.out_features
        for layer in loaded.model.modules()
        if isinstance(layer, Linear4bit)
    )
    assert {fate.part for fate in counts if fate.what == "adapter"} == {
        "vision",
        "projector",
        "language",
    }


def test_the_head_gets_an_adapter_too(folder):
    loaded = quantized(folder)
    assign(loaded.model, loaded.family, rules_of("qlora"), 1e-3, 0.0, LoraSettings(rank=4))
    head = loaded.model.lm_head
    assert head.lora_A["default"].weight.requires_grad
    assert head.base_layer.weight.dtype == torch.float32


def test_first_values_that_need_whole_weights_are_refused(folder):
    loaded = quantized(folder)
    settings = LoraSettings(rank=4, initialization="orthogonal")
    with pytest.raises(ConfigError, match="held in 4 bits; use"):
        assign(loaded.model, loaded.family, rules_of("qlora"), 1e-3, 0.0, settings)


def test_a_bias_beside_a_layer_in_4_bits_is_not_rounded_and_learns_in_float32(tmp_path):
    write_tiny(tmp_path / "model", 0, WHOLE_BLOCKS)
    rules = Rule(match="vision.*.bias"), Rule(match="*", learn=False, quantize=True)
    loaded = quantized(tmp_path / "model", rules, precision="bf16")
    model = loaded.model.train()
    assign(model, loaded.family, rules, 1e-3, 0.0)
    before = {name: one.clone() for name, one in model.named_parameters() if "bias" in name}
    layers = [one for one in model.modules() if isinstance(one, Linear4bit)]
    biased = next(one for one in layers if one.bias is not None)
    with torch.autocast("cpu", torch.bfloat16):
        biased(torch.randn(2, biased.in_features)).float().sum().backward()
    assert biased.bias.dtype == biased.bias.grad.dtype == torch.float32
    after = dict(model.named_parameters())
    assert all(torch.equal(one, after[name]) for name, one in before.items())
