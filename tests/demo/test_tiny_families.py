"""The demo's tiny models of other families are read exactly, and a run of them ends with scores."""

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import load_recipe, quoted
from foveal.data.example import Example, Turn, write_examples
from foveal.demo.tiny_families import TINY_FAMILIES, write_tiny_family
from foveal.demo.walk import DATA, FAMILIES, PHI3_VISION
from foveal.models.loading import load, rows_are_exact
from foveal.run import TrainingRun

TEXTS = ("Count what you see.", "yellow 2013 blue 0000", "True", "False")


@pytest.fixture(params=sorted(TINY_FAMILIES))
def place(request, tmp_path):
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (100, 400, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    images = sorted(tmp_path.glob("*.png"))
    write_tiny_family(TINY_FAMILIES[request.param], tmp_path / "model", 0, TEXTS, images)
    return tmp_path


def test_every_family_that_the_command_offers_can_be_written():
    assert set(FAMILIES) == {PHI3_VISION, *TINY_FAMILIES}


def test_a_family_that_is_not_offered_is_named_before_anything_is_written(tmp_path):
    told = CliRunner().invoke(app, ["demo", "--family", "llama", "--out", str(tmp_path / "out")])
    assert "--family llama: give phi3_v, qwen3_vl, smolvlm" in str(told.exception)
    assert not (tmp_path / "out").exists()


def test_rows_are_exact_and_image_tokens_have_nothing_in_common(place):
    one = load(str(place / "model"), None)
    assert rows_are_exact(one)
    tokens = []
    for path in sorted(place.glob("*.png")):
        image = Image.open(path)
        pixels = one.processor.stack([one.processor.pixels(image)], [one.processor.shape(400, 100)])
        made = one.family.encode_images(one.model, pixels).pooler_output
        tokens += [part.flatten(0, -2) for part in made]
    together = torch.cat(tokens)
    assert together.mean(0).norm() < 1e-4 * together.norm(dim=1).mean()
    assert one.processor.tokenizer.tokenize("Count what you see.")[1:3] == ["Ġwhat", "Ġyou"]


def test_a_run_by_the_demos_recipe_ends_with_a_whole_model(place):
    turn = Turn(images=("0.png",), user="Count what you see.", assistant="True")
    file = place / "train.jsonl"
    write_examples(file, [Example(id=str(k), source="x", conversations=(turn,)) for k in range(2)])
    files = {"train": file, "images": place, "validation": file}
    small = ("data.workers=0", "train.max_steps=1", "train.examples_per_step=2")
    chosen = quoted(model=place / "model", run=place / "run")
    recipe = load_recipe(DATA / "demo.yaml", (*chosen, *quoted("data.", **files), *small))
    outcome = TrainingRun(recipe, Console(quiet=True)).go()
    assert outcome.steps == 1
    assert (place / "run" / "final" / "model.safetensors").is_file()
