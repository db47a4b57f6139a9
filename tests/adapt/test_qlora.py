"""Whole runs that learn through adapters, from a recipe to the folders that they leave."""

import io
import json
import math

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from tiny import SIZES, make_model, pages

from foveal.config import Recipe
from foveal.models.family import load
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.run import TrainingRun
from foveal.train.checkpoint import checkpoints

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft's


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    write_tiny(folder / "model", 0, SIZES)
    pages(folder, 2, 2, "train")
    return folder


def run(place, name, **changes):
    train = {
        "examples_per_step": 2,
        "tokens_per_pass": 600,
        "epochs": 2,
        "learning_rate": 5e-3,
        "warmup_steps": 0,
        "save_every_steps": 2,
    }
    tree = {
        "model": str(place / "model"),
        "run": str(place / name),
        "data": {"train": str(place / "train.jsonl"), "workers": 0, "num_crops": 4},
        "train": train | changes.pop("train", {}),
        "strategy": "qlora",
        "precision": "float32",
        "lora": {"rank": 4, "alpha": 8},
    }
    said = io.StringIO()
    console = Console(file=said, width=120)
    TrainingRun(Recipe.model_validate(tree | changes), console).go()
    return place / name, said.getvalue()


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def whole(place):
    return run(place, "whole")


def test_a_run_in_four_bits_learns_and_says_what_it_learns(whole):
    folder, said = whole
    assert losses(folder)[-1] < losses(folder)[0]
    assert "fixed, 4 bits" in said
    assert "adds them to the whole weights" in said


def test_a_run_in_four_bits_leaves_an_adapter_that_makes_the_merged_model(place, whole):
    base = make_model(place / "model").model
    opened = PeftModel.from_pretrained(base, whole[0] / "adapter").merge_and_unload()
    final = load(str(whole[0] / "final"), 4).model
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(final.eval()(ids).logits, opened.eval()(ids).logits)


def test_a_run_in_four_bits_that_was_stopped_ends_with_the_same_bits(place, whole):
    half, _ = run(place, "half", train={"save_every_steps": 2})
    last = checkpoints(half / "checkpoints")[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    run(place, "half")
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole[0], half))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_second_round_of_adapters_goes_on_from_the_merged_model(place):
    first, _ = run(place, "first", strategy="lora")
    second, _ = run(place, "second", strategy="lora", model=str(first / "final"))
    assert losses(second)[0] < losses(first)[-1] < losses(first)[0]
    base = load(str(first / "final"), 4).model
    opened = PeftModel.from_pretrained(base, second / "adapter").merge_and_unload()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        both = [one.eval()(ids).logits for one in (opened, load(str(second / "final"), 4).model)]
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["full", "qlora"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_loses_little_on_the_way(place, whole, strategy, precision):
    steps = {"max_steps": 2}
    half, _ = run(
        place, f"{precision}-{strategy}", precision=precision, strategy=strategy, train=steps
    )
    exact = (
        whole[0]
        if strategy == "qlora"
        else run(place, f"exact-{precision}", strategy="full", train=steps)[0]
    )
    assert all(map(math.isfinite, losses(half)))
    assert losses(half) == pytest.approx(losses(exact)[:2], rel=2e-2)
    assert not (half / "incidents.jsonl").exists()
