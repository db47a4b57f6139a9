"""Adapters leave files that peft opens by itself, and a merged folder that says the same."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import SIZES, make_model

from foveal.adapt import files
from foveal.adapt.files import save_adapter, save_merged
from foveal.adapt.quantize import plan_quantization
from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings, QuantizationSettings, Rule
from foveal.models.family import load
from foveal.models.phi3_vision.family import FAMILY
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.run import quiet_libraries

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft's

IDS = torch.arange(3, 30)[None]
KINDS = [{}, {"dora": True}, {"rslora": True}]


@pytest.fixture
def folder(tmp_path):
    quiet_libraries()
    write_tiny(tmp_path / "model", 0, SIZES)
    return tmp_path / "model"


def plan(folder, strategy):
    return plan_quantization(str(folder), rules_of(strategy), QuantizationSettings(), "float32")


def tuned(folder, strategy, seed=1, **settings):
    """A model whose adapters say something, as after training."""
    loaded = load(str(folder), 4, quantization=plan(folder, strategy))
    lora = LoraSettings(rank=4, alpha=6, **settings)
    assign(loaded.model, loaded.family, rules_of(strategy), 1e-3, 0.0, lora)
    torch.manual_seed(seed)
    for one in loaded.model.parameters():
        if one.requires_grad:
            one.data += 0.05 * torch.randn_like(one)
    return loaded.model


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


RULES = (
    Rule(match="vision.*", learn=False, adapter=True, rank=2, alpha=8),
    Rule(match="language.layers.1.*", learn=False),
    Rule(match="*", learn=False, adapter=True),
)


@pytest.mark.parametrize(
    ("strategy", "settings"), [*(("lora", kind) for kind in KINDS), (RULES, {})]
)
def test_peft_opens_the_adapter_on_the_base_and_says_the_same(folder, strategy, settings):
    model = tuned(folder, strategy, **settings)
    assert save_adapter(model, folder.with_name("adapter")) is None
    opened = PeftModel.from_pretrained(make_model(folder).model, folder.with_name("adapter"))
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=0)


def test_peft_opens_the_adapter_of_a_quantized_model(folder):
    model = tuned(folder, "qlora")
    note = save_adapter(model, folder.with_name("adapter"))
    assert note is not None
    assert "adds them to the whole weights" in note
    base = load(str(folder), 4, quantization=plan(folder, "qlora")).model
    opened = PeftModel.from_pretrained(base, folder.with_name("adapter"))
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=0)


def test_an_adapter_file_holds_adapters_alone_and_names_its_base(folder):
    save_adapter(tuned(folder, "lora"), folder.with_name("adapter"))
    tensors = load_file(folder.with_name("adapter") / "adapter_model.safetensors")
    assert all(".lora_" in name for name in tensors)
    config = json.loads((folder.with_name("adapter") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("strategy", ["lora", "qlora"])
def test_the_merged_folder_is_what_peft_merges_onto_the_whole_base(folder, strategy, settings):
    model = tuned(folder, strategy, **settings)
    save_adapter(model, folder.with_name("adapter"))
    whole = PeftModel.from_pretrained(make_model(folder).model, folder.with_name("adapter"))
    expected = whole.merge_and_unload().state_dict()
    save_merged(model, folder.with_name("final"))
    merged = load_file(folder.with_name("final") / "model.safetensors")
    assert merged.keys() == expected.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_a_merged_quantized_model_is_plain_again(folder):
    model = tuned(folder, "qlora")
    save_merged(model, folder.with_name("final"))
    config = json.loads((folder.with_name("final") / "config.json").read_text())
    assert "quantization_config" not in config
    again = load_model(folder.with_name("final"))
    assert {one.dtype for one in again.parameters()} == {torch.float32}
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id


def load_model(folder):
    """Load a folder that holds no processor."""
    return FAMILY.load_model(folder, "auto", None)


def test_a_base_in_bf16_is_merged_in_bf16(folder):
    weights = load_file(folder / "model.safetensors")
    halved = {name: one.bfloat16() for name, one in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    model = tuned(folder, "qlora")
    save_merged(model, folder.with_name("final"))
    merged = load_file(folder.with_name("final") / "model.safetensors")
    assert {one.dtype for one in merged.values()} == {torch.bfloat16}
    layer = model.model.layers[0].mlp.down_proj
    expected = halved["model.layers.0.mlp.down_proj.weight"].float() + layer.get_delta_weight(
        "default"
    )
    assert torch.equal(merged["model.layers.0.mlp.down_proj.weight"], expected.bfloat16())


def test_bases_in_several_files_are_merged_into_several(folder, monkeypatch):
    model = tuned(folder, "qlora")
    save_merged(model, folder.with_name("one"))
    make_model(folder).model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(files, "SHARD_BYTES", 60_000)
    save_merged(model, folder.with_name("several"))
    assert len(list(folder.with_name("several").glob("model-*.safetensors"))) > 2
    one, several = (load_model(folder.with_name(name)).state_dict() for name in ("one", "several"))
    assert all(torch.equal(weight, several[name]) for name, weight in one.items())


def test_a_base_with_other_names_in_its_files_is_read_by_transformers(folder):
    model = tuned(folder, "qlora")
    save_merged(model, folder.with_name("one"))
    weights = load_file(folder / "model.safetensors")
    weights["model.vision_embed_tokens.wte.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_merged(model, folder.with_name("other"))
    one, other = (
        load_file(folder.with_name(name) / "model.safetensors") for name in ("one", "other")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("quantize", [False, True])
def test_weights_that_learn_without_an_adapter_are_in_the_merged_folder_alone(folder, quantize):
    rules = (
        Rule(match="projector.*"),
        Rule(match="*", learn=False, adapter=True, quantize=quantize),
    )
    model = tuned(folder, rules)
    note = save_adapter(model, folder.with_name("adapter"))
    assert note is not None
    assert "learnt without an adapter" in note
    assert not folder.with_name("adapter").exists()
    learnt = model.model.vision_embed_tokens.glb_GN.detach().clone()
    save_merged(model, folder.with_name("final"))
    merged = load_file(folder.with_name("final") / "model.safetensors")
    assert torch.equal(merged["model.vision_embed_tokens.glb_GN"], learnt)


def test_a_model_without_adapters_leaves_no_adapter(folder):
    assert save_adapter(tuned(folder, "full"), folder.with_name("adapter")) is None
    assert not folder.with_name("adapter").exists()


def test_adapters_learn_again_on_a_merged_model(folder):
    first = tuned(folder, "lora", seed=1)
    save_merged(first, folder.with_name("final"))
    for file in folder.iterdir():  # the processor's
        if not folder.with_name("final").joinpath(file.name).exists():
            shutil.copy(file, folder.with_name("final"))
    second = tuned(folder.with_name("final"), "lora", seed=2)
    beside = logits(second)
    assert not torch.allclose(beside, logits(load_model(folder.with_name("final"))), atol=1e-3)
    save_merged(second, folder.with_name("again"))
    again = load_model(folder.with_name("again"))
    torch.testing.assert_close(logits(again), beside, rtol=1e-4, atol=1e-4)
