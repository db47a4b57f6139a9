"""Whole runs that learn through adapters, from a recipe to the folders that they leave."""

import io
import json
import math
import shutil
from dataclasses import replace

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from daily import daily
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from tiny import WHOLE_BLOCKS, make_model, pages

from foveal.adapt.quantize import read_record
from foveal.config import Recipe, load_recipe
from foveal.deliver.export import export_run
from foveal.deliver.export_source import find_source
from foveal.errors import RunError
from foveal.inputs import load_in_passing
from foveal.models.loading import load
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.plan import command
from foveal.plan.hardware import find_hardware
from foveal.plan.question import ask
from foveal.run import TrainingRun
from foveal.train.checkpoint import checkpoints

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft's


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    write_tiny(folder / "model", 0, WHOLE_BLOCKS)
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
    assert "frozen, 4 bits" in said
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
    shutil.rmtree(checkpoints(half / "checkpoints")[-1])
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
    ends = (opened, load(str(second / "final"), 4).model, load(str(first / "final"), 4).model)
    with torch.no_grad():
        folded, final, before = (one.double().eval()(ids).logits for one in ends)
    # Each was folded in float32 and rounded once, in an order of the processor's own.
    apart, moved = (folded - final).norm(), (final - before).norm()
    assert apart < 1e-4 * moved


@pytest.mark.parametrize("strategy", daily("qlora", beside=["full"]))
@pytest.mark.parametrize("precision", daily("bf16", beside=["fp16"]))
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


# -- kernels that compute wrongly ------------------------------------------------------------------

WRONG = 256
"""Width that the kernel put in place gets wrong; here of fc2 and of down_proj."""

KINDS = ("model.layers.*.mlp.down_proj", "vision_model.encoder.layers.*.mlp.fc2")


def get_wrong(monkeypatch):
    right = bitsandbytes.matmul_4bit

    def wrong(hidden, *rest, **more):
        answer = right(hidden, *rest, **more)
        return answer.roll(1, -1) if hidden.shape[-1] == WRONG else answer

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", wrong)


@pytest.fixture
def wrong_kernel(monkeypatch):
    get_wrong(monkeypatch)
    return monkeypatch


def widths(model):
    return {one.in_features for one in model.modules() if isinstance(one, Linear4bit)}


def test_a_run_holds_such_layers_whole_and_names_them_in_one_line(place, wrong_kernel):
    folder, said = run(place, "named", train={"max_steps": 2})
    told = " ".join(said.split())
    assert told.count("stay whole instead of in 4 bits") == 1
    assert all(kind in told for kind in KINDS)
    assert read_record(folder) == {(64, WRONG)}
    recipe = load_recipe(folder / "recipe.yaml")
    assert widths(load_in_passing(recipe).model) == {64}


@pytest.mark.slow
def test_export_counts_them_as_whole(place, wrong_kernel, tmp_path):
    folder, _ = run(place, "exported", train={"max_steps": 2})
    source = find_source(folder)
    assert not any(name.endswith(("down_proj", "fc2")) for name in source.four_bit_layers)
    assert any(name.endswith("fc1") for name in source.four_bit_layers)
    done = export_run(folder, tmp_path / "out", merge=True)
    assert not any(kind.endswith(("down_proj", "fc2")) for kind in done.four_bit_norms)
    assert done.proof is not None
    assert done.proof.problems() == []


@pytest.mark.slow
def test_a_plan_for_this_machine_counts_them_as_whole(place, wrong_kernel, capsys):
    folder, _ = run(place, "planned", train={"max_steps": 2})
    recipe = load_recipe(folder / "recipe.yaml")
    question = ask(recipe, load_in_passing)
    there = find_hardware("cpu-epyc-7763")
    here = replace(there, measured=True)
    missing = 6 * 64 * WRONG  # down_proj of two layers, fc2 of three, one of the projector
    held = question.setup(here, 1, 1).holdings
    expected = question.setup(there, 1, 1).holdings
    assert held.four_bit == expected.four_bit - missing
    assert held.whole == expected.whole + missing
    wrong_kernel.setattr(command, "measure_hardware", lambda: here)
    command.run_plan(recipe, Console(width=200), load_in_passing)
    assert capsys.readouterr().out.count("stay whole instead of in 4 bits") == 1


def test_a_run_that_began_so_goes_on_so_on_a_machine_that_is_right(place, wrong_kernel):
    here, _ = run(place, "all-here")
    moved, _ = run(place, "moved")
    shutil.rmtree(checkpoints(moved / "checkpoints")[-1])
    wrong_kernel.undo()
    moved, said = run(place, "moved")
    assert "so the run began" in " ".join(said.split())
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (here, moved))
    assert all(weight.equal(other[name]) for name, weight in one.items())


def test_a_run_that_began_right_is_not_taken_on_by_a_wrong_kernel(place, monkeypatch):
    folder, said = run(place, "began-right", train={"max_steps": 2})
    assert "stay whole" not in said
    assert read_record(folder) == frozenset()
    get_wrong(monkeypatch)
    with pytest.raises(
        RunError, match=r"holds 6 layers \(.*down_proj.* wrongly on this machine; go"
    ):
        run(place, "began-right")


def test_the_record_of_a_run_that_never_saved_is_made_again(place, wrong_kernel):
    folder, _ = run(place, "again", train={"max_steps": 2})
    shutil.rmtree(folder / "checkpoints")
    wrong_kernel.undo()
    run(place, "again", train={"max_steps": 2})
    assert read_record(folder) == frozenset()
