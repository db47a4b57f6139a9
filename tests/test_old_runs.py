"""A run that an older version wrote is opened by every command, and goes on where it stood.

`old_run` was written before every model was read through one seam: six steps, the projector learnt
whole and all else by adapters. Its paths start from its own folder.
"""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from small_runs import losses, metrics
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import load_recipe
from foveal.run import TrainingRun

STORED = Path(__file__).parent / "old_run"
AFTER = STORED / "run" / "evaluation" / "after"


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = shutil.copytree(STORED, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


def call(*words):
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_of_an_older_version_goes_on_from_its_checkpoint_along_its_own_curve(place):
    told = losses(place / "run")
    shutil.rmtree(place / "run" / "checkpoints" / "step-6")
    shutil.rmtree(place / "run" / "final")
    outcome = TrainingRun(load_recipe(Path("recipe.yaml")), Console(quiet=True)).go()
    assert outcome.steps == 6
    assert [line["step"] for line in metrics(place / "run")] == [1, 2, 3, 4, 5, 6]
    found = losses(place / "run")
    assert found[:4] == told[:4]
    # Other processors sum in another order. Neighbouring losses are 0.6 to 2 percent apart.
    assert found[4:] == pytest.approx(told[4:], rel=1e-4)
    made, was = (
        load_file(one / "final" / "model.safetensors") for one in (Path("run"), STORED / "run")
    )
    assert made.keys() == was.keys()
    assert all(one.allclose(was[name], rtol=1e-2, atol=1e-3) for name, one in made.items())


def test_a_whole_run_of_an_older_version_stays_as_it_is(place):
    files = sorted((place / "run" / "checkpoints").rglob("*"))
    before = [one.stat().st_mtime_ns for one in files]
    outcome = TrainingRun(load_recipe(Path("recipe.yaml")), Console(quiet=True)).go()
    assert outcome.stopped is None
    assert [one.stat().st_mtime_ns for one in files] == before


def test_a_run_of_an_older_version_is_reported(place):
    call("report", "run")
    page = (place / "run" / "report.html").read_text()
    assert "anls" in page
    assert (
        json.loads((AFTER / "predictions.jsonl").read_text().splitlines()[0])["prediction"] in page
    )


def test_a_run_of_an_older_version_is_evaluated(place):
    call("evaluate", "run", "validation.jsonl", "--out", "scores", "--max-new-tokens", 4)
    made, was = (
        [json.loads(line) for line in (one / "predictions.jsonl").read_text().splitlines()]
        for one in (place / "scores", AFTER)
    )
    assert [(one["id"], one["answers"]) for one in made] == [
        (one["id"], one["answers"]) for one in was
    ]


def test_a_run_of_an_older_version_is_asked(place):
    (first, *_) = (STORED / "validation.jsonl").read_text().splitlines()
    (turn,) = json.loads(first)["conversations"]
    said = call("ask", "run", f"images/{turn['images'][0]}", turn["user"], "--max-new-tokens", 4)
    assert said.strip()


def test_a_run_of_an_older_version_is_exported_as_it_was_written(place):
    call("export", "run", "out", "--merge", "--dtype", "float32")
    made, was = (
        load_file(one / "model.safetensors") for one in (Path("out"), STORED / "run" / "final")
    )
    assert made.keys() == was.keys()
    assert all(one.allclose(was[name], rtol=1e-5, atol=1e-6) for name, one in made.items())
