"""The folder that a run leaves at its end, whatever files its base comes in."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import WHOLE_BLOCKS, make_model

from foveal.adapt.quantize import plan_quantization
from foveal.adapt.strategy import assign, rules_of
from foveal.config import Recipe, load_recipe, save_recipe
from foveal.deliver.model_folder import save_final
from foveal.models.loading import load
from foveal.models.phi3_vision import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.train.checkpoint import Progress, save_checkpoint
from foveal.train.engines.one_process import Engine

LAYER = "model.layers.0.mlp.down_proj"
EMBEDDING, SECOND_NAME = "model.embed_tokens.weight", "model.vision_embed_tokens.wte.weight"


def on_another_base(run: Path, place: Path) -> tuple[Path, Path]:
    """Copy a run and its base, to change the base's files."""
    recipe = load_recipe(run / "recipe.yaml")
    base = shutil.copytree(recipe.model, place / "base")
    copied = shutil.copytree(run, place / "run")
    save_recipe(recipe.model_copy(update={"model": str(base)}), copied / "recipe.yaml")
    return copied, base


def test_after_4_bit_weights_it_has_the_number_format_of_its_base(qlora_run, tmp_path):
    run, base = on_another_base(qlora_run, tmp_path)
    halved = {n: one.bfloat16() for n, one in load_file(base / "model.safetensors").items()}
    save_file(halved, base / "model.safetensors", metadata={"format": "pt"})
    save_final(run)
    merged = load_file(run / "final" / "model.safetensors")
    assert {one.dtype for one in merged.values()} == {torch.bfloat16}
    learnt = load_file(run / "checkpoints" / "step-4" / "weights.safetensors")
    down, up = (learnt[f"{LAYER}.lora_{one}.default.weight"] for one in "AB")
    expected = halved[f"{LAYER}.weight"].float() + 12 / 4 * up @ down  # alpha over rank
    torch.testing.assert_close(merged[f"{LAYER}.weight"], expected.bfloat16())


@pytest.mark.parametrize("kind", ["shards", "second name"])
def test_a_base_in_several_files_or_under_its_second_name_gives_the_same(kind, lora_run, tmp_path):
    run, base = on_another_base(lora_run, tmp_path)
    file = base / "model.safetensors"
    if kind == "shards":
        model = Phi3VisionForConditionalGeneration.from_pretrained(base)
        file.unlink()
        model.save_pretrained(base, max_shard_size="100KB")
        assert len(list(base.glob("model-*.safetensors"))) > 2
    else:
        tensors = load_file(file)
        tensors[SECOND_NAME] = tensors.pop(EMBEDDING)
        save_file(tensors, file, metadata={"format": "pt"})
    save_final(run)
    before, after = (load_file(one / "final" / "model.safetensors") for one in (lora_run, run))
    assert before.keys() == after.keys()
    assert all(weight.equal(after[name]) for name, weight in before.items())


IDS = torch.arange(3, 30)[None]
RULES = [
    {"match": "vision.*", "learn": False, "adapter": True, "rank": 2, "alpha": 8},
    {"match": "language.layers.1.*", "learn": False},
    {"match": "*", "learn": False, "adapter": True},
]
WHOLE_TOO = [{"match": "projector.*"}, {"match": "*", "learn": False, "adapter": True}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    write_tiny(folder, 0, WHOLE_BLOCKS)
    return folder


def loaded(recipe):
    rules, settings = rules_of(recipe.strategy), recipe.quantization
    return load(recipe.model, 4, quantization=plan_quantization(recipe.model, rules, settings, ""))


def ended(base, place, strategy, **lora):
    """A run behind its last step: its recipe, and the model in memory, whose adapters speak."""
    tree = {"model": str(base), "run": str(place / "run"), "precision": "float32"}
    tree |= {"strategy": strategy, "lora": {"rank": 4, "alpha": 6, **lora}}
    tree |= {"quantization": {"compute": "float32"}}
    recipe = Recipe.model_validate(tree)
    made = loaded(recipe)
    assign(made.model, made.family, rules_of(recipe.strategy), 1e-3, 0.0, recipe.lora)
    torch.manual_seed(1)
    learning = [one for one in made.model.parameters() if one.requires_grad]
    for one in learning:
        one.data += 0.05 * torch.randn_like(one)
    save_recipe(recipe, recipe.run / "recipe.yaml")
    optimizer, engine = torch.optim.AdamW(learning), Engine("float32")
    progress = Progress(1, {}, "", 1)
    save_checkpoint(recipe.run / "checkpoints", progress, made.model, optimizer, engine)
    return recipe, made.model


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
@pytest.mark.parametrize(
    ("strategy", "lora"),
    [("lora", {}), ("lora", {"dora": True}), ("lora", {"rslora": True}), (RULES, {})],
    ids=["lora", "dora", "rslora", "rules"],
)
def test_peft_opens_the_adapter_on_the_base_and_says_the_same(base, tmp_path, strategy, lora):
    recipe, model = ended(base, tmp_path, strategy, **lora)
    assert save_final(recipe.run) is None
    opened = PeftModel.from_pretrained(make_model(base).model, recipe.run / "adapter")
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_opens_the_adapter_on_the_same_4_bits(base, tmp_path):
    recipe, model = ended(base, tmp_path, "qlora")
    note = save_final(recipe.run)
    assert note is not None
    assert "adds them to the whole weights" in note
    opened = PeftModel.from_pretrained(loaded(recipe).model, recipe.run / "adapter")
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=0)


def test_an_adapter_file_holds_adapters_alone_and_names_its_base(lora_run):
    tensors = load_file(lora_run / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in tensors)
    config = json.loads((lora_run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == load_recipe(lora_run / "recipe.yaml").model
    layers = config["target_modules"]
    assert layers == sorted(layers), "in the order of this process's hashes"


def test_where_weights_learn_without_an_adapter_there_is_no_adapter_folder(base, tmp_path):
    recipe, _ = ended(base, tmp_path, WHOLE_TOO)
    note = save_final(recipe.run)
    assert note is not None
    assert "learnt without an adapter" in note
    assert not (recipe.run / "adapter").exists()


def test_a_run_without_adapters_leaves_no_adapter(full_run):
    assert (full_run / "final").is_dir()
    assert not (full_run / "adapter").exists()
