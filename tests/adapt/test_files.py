"""Adapters leave files that peft opens by itself."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import SIZES, make_model

from foveal.adapt.files import save_adapter
from foveal.adapt.quantize import plan_quantization
from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings, QuantizationSettings, Rule
from foveal.inputs import quiet_libraries
from foveal.models.family import load
from foveal.models.phi3_vision.tiny import write_tiny

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


@pytest.mark.parametrize("quantize", [False, True])
def test_where_weights_learn_without_an_adapter_there_is_no_adapter_folder(folder, quantize):
    rules = (
        Rule(match="projector.*"),
        Rule(match="*", learn=False, adapter=True, quantize=quantize),
    )
    model = tuned(folder, rules)
    note = save_adapter(model, folder.with_name("adapter"))
    assert note is not None
    assert "learnt without an adapter" in note
    assert not folder.with_name("adapter").exists()


def test_a_model_without_adapters_leaves_no_adapter(folder):
    assert save_adapter(tuned(folder, "full"), folder.with_name("adapter")) is None
    assert not folder.with_name("adapter").exists()
