"""The folder that a run leaves at its end, whatever files its base comes in."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveal.config import load_recipe, save_recipe
from foveal.deliver.export import write_final
from foveal.models.phi3_vision import Phi3VisionForConditionalGeneration

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
    write_final(run)
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
    write_final(run)
    before, after = (load_file(one / "final" / "model.safetensors") for one in (lora_run, run))
    assert before.keys() == after.keys()
    assert all(weight.equal(after[name]) for name, weight in before.items())
