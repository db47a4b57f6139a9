"""A checkpoint is whole or not there; what it holds comes back to the bit."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small_runs
import torch
import yaml
from bitsandbytes.optim import AdamW8bit
from rich.console import Console
from small_runs import run, same_bits, weights
from torch import nn

from foveal.config import Recipe
from foveal.errors import ConfigError, RunError
from foveal.run import TrainingRun
from foveal.train import checkpoint as module
from foveal.train.checkpoint import (
    Progress,
    best_checkpoint,
    checkpoints,
    load_checkpoint,
    prune,
    read_progress,
    save_checkpoint,
)
from foveal.train.engines.one_process import Engine
from foveal.train.records.log import RunLog

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def a_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(3, 64, generator=generator)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, step: int, model=None, optimizer=None) -> Path:
    model = model or nn.Linear(64, 64)
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters())
        a_step(model, optimizer)
    return save_checkpoint(folder, Progress(step, {}, "", 1), model, optimizer, Engine())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor, AdamW8bit])
def test_a_step_behind_a_checkpoint_is_the_step_that_would_have_been(tmp_path, kind):
    models = [nn.Linear(64, 128), nn.Linear(64, 128)]
    optimizers = [kind(model.parameters()) for model in models]
    a_step(models[0], optimizers[0])
    place = save(tmp_path, 1, models[0], optimizers[0])
    load_checkpoint(place, models[1], optimizers[1], Engine())
    for model, optimizer in zip(models, optimizers, strict=True):
        a_step(model, optimizer, seed=1)
    assert models[0].weight.equal(models[1].weight)
    assert models[0].bias.equal(models[1].bias)


class Disk:
    """A disk that fails at one of the places where a checkpoint touches it."""

    def __init__(self, monkeypatch, fails_at: str) -> None:
        self.fails_at, self.patch = fails_at, monkeypatch
        for owner, name in (
            (Path, "mkdir"),
            (module, "save_file"),
            (Path, "write_text"),
            (os, "fsync"),
            (Path, "rename"),
        ):
            self._watch(owner, name)

    def _watch(self, owner, name):
        original, calls = getattr(owner, name), []

        def watched(*arguments, **named):
            calls.append(1)
            if self.fails_at == f"{name} {len(calls)}":
                raise FULL
            return original(*arguments, **named)

        self.patch.setattr(owner, name, watched)


@pytest.mark.parametrize(
    "fails_at",
    ["mkdir 1", "save_file 1", "save_file 2", "write_text 1", "fsync 1", "fsync 4", "rename 1"],
)
def test_a_write_that_fails_anywhere_leaves_the_former_checkpoint_and_says_so(
    tmp_path, monkeypatch, fails_at
):
    save(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "step-1").iterdir()}
    with monkeypatch.context() as patch:
        Disk(patch, fails_at)
        with pytest.raises(RunError, match=r"cannot write .*step-2: No space left on device"):
            save(tmp_path, 2)
    assert [one.name for one in tmp_path.iterdir()] == ["step-1"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-1").iterdir()} == before
    assert [one.name for one in checkpoints(tmp_path)] == ["step-1"]
    save(tmp_path, 2)  # there is space again
    assert [one.name for one in checkpoints(tmp_path)] == ["step-1", "step-2"]


def test_what_kills_left_torn_is_taken_for_nothing_and_cleared_away(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / ".step-4.part").mkdir()
    (tmp_path / ".step-4.part" / "state.json").write_text("{}")
    (tmp_path / "step-1").rename(tmp_path / ".step-1.gone")  # killed while it was deleted
    assert [one.name for one in checkpoints(tmp_path)] == ["step-2", "step-3"]
    prune(tmp_path, 1, None)
    assert [one.name for one in tmp_path.iterdir()] == ["step-3"]


def test_a_copy_that_a_person_made_is_neither_taken_nor_cleared_away(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-1 copy")
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-best")
    save(tmp_path, 2)
    prune(tmp_path, 1, None)
    assert [one.name for one in checkpoints(tmp_path)] == ["step-2"]
    assert {one.name for one in tmp_path.iterdir()} == {"step-1 copy", "step-best", "step-2"}


def score(run: Path, name: str, **values: float | None) -> None:
    folder = run / "evaluation" / name
    folder.mkdir(parents=True)
    tree = {metric: {"value": value, "count": 3} for metric, value in values.items()}
    (folder / "scores.json").write_text(json.dumps(tree))


@pytest.fixture
def scored(tmp_path):
    """Checkpoints at 2, 4, 6 and 8, of which all but the last one were evaluated."""
    for step, anls, error in ((2, 0.5, 0.3), (4, 0.9, 0.1), (6, 0.9, 0.2)):
        save(tmp_path / "checkpoints", step)
        score(tmp_path, f"step-{step}", anls=anls, relative_error=error, auroc=None)
    save(tmp_path / "checkpoints", 8)
    return tmp_path


def test_the_best_checkpoint_is_that_of_the_best_score_the_earliest_of_equals(scored):
    assert best_checkpoint(scored, "anls") == scored / "checkpoints" / "step-4"


def test_an_error_should_be_small(scored):
    assert best_checkpoint(scored, "relative_error") == scored / "checkpoints" / "step-4"
    score(scored, "step-8", relative_error=0.05)
    assert best_checkpoint(scored, "relative_error") == scored / "checkpoints" / "step-8"


def test_the_last_step_of_a_run_is_scored_after_it(scored):
    score(scored, "after", anls=0.95)
    assert best_checkpoint(scored, "anls") == scored / "checkpoints" / "step-8"


def test_no_score_is_no_best_checkpoint(scored):
    assert best_checkpoint(scored, "auroc") is None  # not a number
    assert best_checkpoint(scored, "unheard_of") is None
    assert best_checkpoint(scored / "nowhere", "anls") is None


def test_the_best_checkpoint_outlives_newer_ones(scored):
    folder = scored / "checkpoints"
    for step in (10, 12):
        save(folder, step)
        prune(folder, 2, best_checkpoint(scored, "anls"))
    assert [one.name for one in checkpoints(folder)] == ["step-4", "step-10", "step-12"]


def recipe(place: Path, name: str = "run", precision: str = "float32", **changes) -> Recipe:
    train = {"warmup_steps": 0, "save_every_steps": 100, **changes}
    return small_runs.recipe(
        place,
        name,
        precision=precision,
        data__validation=str(place / "validation.jsonl"),
        evaluate__max_new_tokens=2,
        **{f"train__{key}": value for key, value in train.items()},
    )


def test_a_run_saves_what_it_evaluates_and_keeps_the_best_beside_the_newest(place):
    run(recipe(place, best_metric="anls", evaluate_every_steps=2, keep_checkpoints=1))
    scores = {
        name: json.loads((place / "run" / "evaluation" / name / "scores.json").read_text())
        for name in ("step-2", "step-4", "after")
    }
    values = {name: found["anls"]["value"] for name, found in scores.items()}
    best = max(values, key=lambda name: values[name]).replace("after", "step-6")
    kept = [one.name for one in checkpoints(place / "run" / "checkpoints")]
    assert kept == sorted({best, "step-6"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"best_metric": "anls"}, "needs train.evaluate_every_steps"),
        ({"best_metric": "bleu", "evaluate_every_steps": 2}, "not among evaluate.metrics: accur"),
    ],
)
def test_a_best_that_could_not_be_known_is_refused_before_the_run(place, changes, said):
    with pytest.raises(ConfigError, match=said):
        TrainingRun(recipe(place, **changes), Console(quiet=True))


def test_a_run_that_did_not_know_a_setting_goes_on_where_it_is_at_its_default(place):
    run(recipe(place, max_steps=1))
    (state,) = (place / "run" / "checkpoints").glob("*/state.json")
    tree = json.loads(state.read_text())
    del tree["recipe"]["data.frames"]
    state.write_text(json.dumps(tree))
    stored, known = read_progress(state.parent), recipe(place, max_steps=1)
    now = replace(stored, recipe=module.resume_key(known))
    module.check_same_run(state.parent, stored, now)
    other = replace(now, recipe=now.recipe | {"data.frames": 4})
    with pytest.raises(RunError, match=r"another run: data\.frames was 8, is 4; undo that"):
        module.check_same_run(state.parent, stored, other)


def test_a_loss_scale_goes_on_where_it_stood(place, monkeypatch):
    def quickly(*arguments, **named):  # so that a short run sees it change
        return original(*arguments, **named | {"growth_interval": 2, "init_scale": 2.0**20})

    original = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", quickly)
    more = {"save_every_steps": 3, "max_bad_steps": 100, "epochs": 3}
    run(recipe(place, "whole", "fp16", **more))
    run(recipe(place, "half", "fp16", **more))
    for name in ("step-6", "step-9"):
        saved = place / "half" / "checkpoints" / name
        if name == "step-6":
            assert read_progress(saved).loss_scale is not None
        else:
            drop(saved)
    drop(place / "half" / "final")
    run(recipe(place, "half", "fp16", **more))
    scales = [
        read_progress(place / name / "checkpoints" / "step-9").loss_scale
        for name in ("whole", "half")
    ]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] != 2.0**20
    assert same_bits(weights(place / "half"), weights(place / "whole"))


def drop(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_a_measure_that_cannot_be_written_is_a_clear_error_too(place, monkeypatch):
    def full(*_):
        raise FULL

    monkeypatch.setattr(RunLog, "write", full)
    with pytest.raises(RunError, match=r"cannot write to .*run: No space left on device; free"):
        run(recipe(place))


STEP_1 = Path("run") / "checkpoints" / "step-1"


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_one_line_and_exit_status_two(place):
    chosen = recipe(place, max_steps=2, save_every_steps=1)
    run(chosen)
    drop(place / "run" / "checkpoints" / "step-2")
    kept = {path.name: path.read_bytes() for path in (place / STEP_1).iterdir()}
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
    command = [sys.executable, "-m", "foveal.cli", "train", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=limit_files
    )
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("foveal: cannot write checkpoint")
    assert "File too large" in said
    assert "free space and run the same command again" in said
    assert "Traceback" not in done.stderr
    assert [one.name for one in (place / "run" / "checkpoints").iterdir()] == ["step-1"]
    assert {path.name: path.read_bytes() for path in (place / STEP_1).iterdir()} == kept
    run(chosen)  # there is space again
    assert (place / "run" / "final").exists()
