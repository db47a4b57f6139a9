"""Memory does not grow while a run goes on."""

import json
import subprocess
import sys

import pytest
from tiny import pages, write_model

LONG_RUN = """
import json, sys
from pathlib import Path
from rich.console import Console
from foveal.config import Recipe
from foveal.run import TrainingRun
from foveal.train import loop

take_step, resident = loop.train_step, []
def step(*arguments):
    seen = take_step(*arguments)
    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    return seen
loop.train_step = step
TrainingRun(Recipe.model_validate(json.loads(sys.argv[1])), Console(quiet=True)).go()
print(json.dumps(resident))
"""


@pytest.mark.slow
def test_memory_does_not_grow_over_five_hundred_steps(tmp_path):
    write_model(tmp_path / "model")
    pages(tmp_path, 3, 2, "train")
    tree = {
        "model": str(tmp_path / "model"),
        "run": str(tmp_path / "run"),
        "precision": "float32",
        "data": {"train": str(tmp_path / "train.jsonl"), "workers": 0, "num_crops": 1},
        "train": {"epochs": 250, "examples_per_step": 3, "save_every_steps": 100},
    }
    done = subprocess.run(
        [sys.executable, "-c", LONG_RUN, json.dumps(tree)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    resident = json.loads(done.stdout)
    assert len(resident) == 500
    early, late = max(resident[50:150]), max(resident[-100:])
    assert late - early < 4 * 2**20  # a leak of one row of a step would be 20 KB a step
