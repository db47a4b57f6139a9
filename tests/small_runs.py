"""Builds recipes of small runs, runs them, lets them die, and reads what they left."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from foveal.config import Recipe
from foveal.run import TrainingRun


def recipe(place: Path, run: str = "run", **changes) -> Recipe:
    tree = {
        "model": str(place / "model"),
        "run": str(place / run),
        "precision": "float32",
        "data": {"train": str(place / "train.jsonl"), "workers": 0, "num_crops": 4},
        "train": {
            "epochs": 2,
            "examples_per_step": 4,
            "tokens_per_pass": 600,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "save_every_steps": 2,
            "recompute": "none",  # auto first asks the model what it keeps
        },
        "evaluate": {"max_new_tokens": 4},
    }
    for name, value in changes.items():
        branch, _, leaf = name.rpartition("__")
        (tree[branch] if branch else tree)[leaf] = value
    return Recipe.model_validate(tree)


def run(chosen: Recipe, **options):
    return TrainingRun(chosen, Console(quiet=True), **options).go()


def metrics(run_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def losses(run_folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(run_folder)]


def weights(run_folder: Path):
    return load_file(run_folder / "final" / "model.safetensors")


def same_bits(one, other) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def run_until(training: TrainingRun, stop: int) -> None:
    """Take a run to a step and then let it die without a word."""
    from foveal import run as run_module

    class DiedError(Exception):
        pass

    original = run_module.RunLog

    class DyingLog(original):
        def write(self, step, *rest):
            super().write(step, *rest)
            if step > stop:
                raise DiedError

    run_module.RunLog = DyingLog
    try:
        with pytest.raises(DiedError):
            training.go()
    finally:
        run_module.RunLog = original
