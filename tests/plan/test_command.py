"""What `foveal plan` promises."""

import json
import re
from dataclasses import replace

import pytest
import tiny
from rich.console import Console
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import load_recipe
from foveal.errors import ConfigError
from foveal.plan import command
from foveal.plan.estimate import Machines, advise, compare, decide
from foveal.plan.hardware import ASSUMED, find_hardware
from foveal.plan.question import ask
from foveal.plan.this_machine import (
    ASSUMED_HERE,
    find_efficiency,
    store_efficiency,
)
from foveal.run import TrainingRun

RECIPE = "model: microsoft/Phi-3.5-vision-instruct\nrun: none\ndata: {train: PATH}\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("PATH", json.dumps(str(tiny.pages(folder, 5, 3)))))
    return path


@pytest.fixture(scope="module")
def question(recipe):
    return ask(load_recipe(recipe), _no_model)


def _no_model(_recipe):
    raise AssertionError("no weights are loaded for a plan")


def test_the_published_model_is_planned_without_a_download(recipe):
    shown = CliRunner().invoke(
        app, ["plan", str(recipe), "--gpu", "h200", "--price", "4", "--json"]
    )
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.stdout)["plan"]
    assert plan["fits"]
    assert plan["price"] == pytest.approx(plan["hours"] * 4)
    # In bf16 the linear layers of the tower's last layer, which no pass reads, are held in 16 bits.
    unread = 4 * 1024**2 + 2 * 1024 * 4096
    assert plan["memory"]["weights_bytes"] == 4 * 4146621440 - 2 * unread


def test_a_plan_says_in_plain_words_what_its_data_is_and_takes_a_card_by_any_case(recipe):
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "H200"])
    assert shown.exit_code == 0, shown.output
    assert "steps an epoch on 1 process, " in " ".join(shown.stdout.split())
    assert "Pictures" in shown.stdout


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("attention=flash_attention_2", "cannot read rows that share pictures; use attention=flex"),
        ("train.best_metric=anls", "train.best_metric=anls needs data.validation"),
        ("evaluate.metrics=[f2]", "unknown metric f2"),
    ],
)
def test_what_a_run_refuses_is_refused_in_the_same_words(recipe, override, said):
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "h200", override])
    assert isinstance(shown.exception, ConfigError)
    assert said in str(shown.exception)
    with pytest.raises(ConfigError) as refused:
        TrainingRun(load_recipe(recipe, (override,)), Console(quiet=True))
    assert str(refused.value) == str(shown.exception)


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_to_change(recipe):
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "rtx4090"])
    assert shown.exit_code == 1
    assert "does NOT fit" in shown.output
    assert "strategy=qlora" in shown.output


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "recompute"), [("rtx4090", "auto"), ("h100", "none")])
def test_all_advice_is_true(recipe, gpu, recompute):
    given = (f"train.recompute={recompute}",)
    question = ask(load_recipe(recipe, given), _no_model)
    small = Machines(find_hardware(gpu), 1, 1)
    now = decide(question, small)
    assert not now.fits
    advice = [change.rpartition(" (")[0] for change in advise(question, small, now)]
    assert "strategy=lora" in advice or "strategy=qlora" in advice
    assert advice[-1].endswith("GPUs with engine=fsdp2")
    for change in advice:
        machines = small
        if "GPUs with" in change:
            number, _, change = change.partition(" GPUs with ")
            machines = replace(small, gpus=int(number))
        change = re.sub(r"token budget \S+ -> ", "train.tokens_per_pass=", change).replace(",", "")
        changed = replace(question, recipe=load_recipe(recipe, (*given, change)))
        assert decide(changed, machines).fits, change


@pytest.mark.slow
def test_a_comparison_begins_with_the_fastest_that_fits(question):
    machines = Machines(find_hardware("a100-80gb"), 8, 1)
    found = compare(question, machines)
    fits = [one.fits for one in found]
    assert fits == sorted(fits, reverse=True)
    speeds = [one.examples_per_second for one in found if one.fits]
    assert speeds == sorted(speeds, reverse=True)
    assert {one.setup.strategy for one in found} == {"full", "frozen_vision", "lora", "qlora"}


def test_a_format_that_a_card_lacks_is_refused_in_a_line(recipe):
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "t4"], catch_exceptions=True)
    assert "t4 does not compute in it" in str(shown.exception)


def test_what_was_measured_on_a_machine_is_used_from_then_on(tmp_path):
    hardware = find_hardware("l4")
    assert find_efficiency(hardware, tmp_path) == ASSUMED
    known = replace(ASSUMED, matrix=0.5, source="measured")
    store_efficiency(hardware.name, known, tmp_path)
    assert find_efficiency(hardware, tmp_path) == known


@pytest.mark.parametrize("name", ["cpu-epyc-7763", "l4"])
def test_what_is_assumed_of_processors_is_not_assumed_of_a_gpu(tmp_path, name):
    measured = replace(find_hardware(name), measured=True)
    assumed = {"cpu-epyc-7763": ASSUMED_HERE, "l4": ASSUMED}[name]
    assert find_efficiency(measured, tmp_path) == assumed


@pytest.mark.slow
def test_rows_are_run_for_real_beside_their_estimates(tmp_path, monkeypatch):
    from foveal.inputs import load_in_passing

    kept = {}
    monkeypatch.setattr(command, "store_efficiency", kept.__setitem__)
    here = replace(find_hardware("cpu-epyc-7763"), measured=True)  # measuring takes seconds
    monkeypatch.setattr(command, "measure_hardware", lambda: here)
    model = tmp_path / "model"
    tiny.make_model(model)
    overrides = (
        f"model={model}",
        f"data.train={tiny.pages(tmp_path, 3, 2)}",
        "precision=float32",
        "data.num_crops=4",
        "train.tokens_per_pass=300",
    )
    path = tmp_path / "recipe.yaml"
    path.write_text("run: none\n")
    console = Console(quiet=True)
    command.run_plan(load_recipe(path, overrides), console, load_in_passing, measure=True)
    ((machine, efficiency),) = kept.items()
    assert machine
    assert efficiency.matrix > 0
    assert "measured here" in efficiency.source
