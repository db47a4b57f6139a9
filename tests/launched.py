"""Builds runs of several processes, and of one beside them to compare with."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest.mock import patch

import tiny_models
import torch
import yaml
from forked import fork_group
from rich.console import Console
from safetensors.torch import load_file
from tiny import make_image, turn, write_data, write_model

from foveal.config import load_recipe
from foveal.data import rows
from foveal.run import TrainingRun
from foveal.train.checkpoint import checkpoints
from foveal.train.records.log import RunLog

JOBS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from launched import run_jobs
run_jobs(sys.argv[2])
"""

TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port")
ACCELERATE = (
    "accelerate.commands.launch",
    *("--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--num_processes", "2", "--main_process_port"),
)


def ragged_data(folder: Path) -> Path:
    """Pages with one to four questions, and examples without a picture among them."""
    conversations = []
    for page in range(6):
        make_image(folder / "images" / f"{page}.png", page, (50 + 30 * (page % 2), 40))
        conversations += [
            [
                turn(
                    f"What is {number}?",
                    f"It is {page} {number}." * (1 + page % 3),
                    [f"{page}.png"],
                )
            ]
            for number in range(1 + page % 4)
        ]
        conversations.append([turn(f"Say {page}.", "word " * (1 + page))])
    return write_data(folder / "train.jsonl", conversations)


def stop_in_the_middle(run: Path, copy: Path) -> None:
    """Leave a copy of a run as it stood before its last checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "final")
    shutil.rmtree(checkpoints(copy / "checkpoints")[-1])


@contextmanager
def asked_to_stop(step: int) -> Iterator[None]:
    """Send SIGTERM to this process behind a step, where that is the main one."""
    write = RunLog.write

    def told(log: RunLog, taken: int, *rest: object) -> None:
        write(log, taken, *rest)
        if taken == step and log.is_main:
            signal.raise_signal(signal.SIGTERM)

    with patch.object(RunLog, "write", told):
        yield


@contextmanager
def a_high_loss_scale() -> Iterator[None]:
    """Begin with a scale at which gradients overflow, and let it grow again within a few steps."""
    original = torch.amp.GradScaler

    def quick(*arguments: object, **named: object) -> torch.amp.GradScaler:
        return original(*arguments, **named | {"growth_interval": 2, "init_scale": 2.0**16})

    with patch.object(torch.amp, "GradScaler", quick):
        yield


@dataclass(frozen=True)
class Job:
    """One run, or a piece of one; of all processes of a launch."""

    recipe: str
    overrides: Sequence[str] = ()
    begun_by: str = ""
    """Folder of a whole run, of which this one takes over all but the last checkpoint."""

    stop_at: int = 0
    """Step behind which it is asked to stop."""

    ranks_of_a_block: int = rows.RANKS_OF_A_BLOCK
    """Ranks that plan their steps together; others ask each other how many passes there are."""

    def run(self, console: Console) -> None:
        recipe = load_recipe(Path(self.recipe), tuple(self.overrides))
        if self.begun_by and os.environ.get("RANK", "0") == "0":  # the others wait for it
            stop_in_the_middle(Path(self.begun_by), recipe.run)
        near = patch.object(rows, "RANKS_OF_A_BLOCK", self.ranks_of_a_block)
        with asked_to_stop(self.stop_at), a_high_loss_scale(), near:
            TrainingRun(recipe, console).go()


def run_jobs(told: str) -> None:
    """Run jobs that are told as JSON, one after the other."""
    for job in json.loads(told):
        Job(**job).run(Console(stderr=True))


@dataclass(frozen=True)
class Place:
    """A folder of runs on the same model and data."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)
    """What a run alone printed."""

    @property
    def broken(self) -> dict[str, object]:
        """Settings of a run over data with a picture that is found broken on the way."""
        folder = self.folder / "broken"
        if not folder.exists():
            ragged_data(folder)
            image = folder / "images" / "1.png"  # which one of the three steps shows
            image.write_bytes(image.read_bytes()[:-1500])
        data = {"data__train": str(folder / "train.jsonl"), "data__max_bad_fraction": 1}
        return {**data, "train__max_steps": 3}

    def recipe(self, run: str, **changes: object) -> Path:
        tree: dict[str, object] = {
            "model": str(self.folder / "model"),
            "run": str(self.folder / run),
            "precision": "float32",
            "data": {"train": str(self.folder / "train.jsonl"), "workers": 0, "num_crops": 4},
            "train": {
                "epochs": 2,
                "examples_per_step": 4,
                "tokens_per_pass": 300,
                "learning_rate": 1e-3,
                "warmup_steps": 1,
                "save_every_steps": 5,
            },
        }
        for name, value in changes.items():
            branch, _, leaf = name.rpartition("__")
            (tree.setdefault(branch, {}) if branch else tree)[leaf] = value
        path = self.folder / f"{run}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def run_alone(self, recipe: Path, **how: object) -> None:
        said = io.StringIO()
        Job(str(recipe), **how).run(Console(file=said, width=1000))
        self.said[recipe.stem] = said.getvalue()

    def run_together(self, jobs: Sequence[Job], launcher: tuple[str, ...] = ()) -> None:
        """Run one after the other, all in the same two processes; none: those need no launcher."""
        told = json.dumps([asdict(job) for job in jobs])
        if not launcher:
            for one in fork_group(2, free_port(), self.folder, run_jobs, told):
                status, said = one.ended()
                assert status == 0, said
            return
        done = launch(self.folder, JOBS, str(Path(__file__).parent), told, launcher=launcher)
        assert done.returncode == 0, done.stderr

    def metrics(self, run: str) -> list[dict]:
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def incidents(self, run: str) -> list[dict]:
        lines = (self.folder / run / "incidents.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / run / "final" / "model.safetensors")


def make_place(folder: Path, family: str = "phi3_v") -> Place:
    """Make a model of a family and data to run on."""
    if family == "phi3_v":
        write_model(folder / "model")
    else:
        tiny_models.write_tiny(family, folder / "model")
    ragged_data(folder)
    return Place(folder)


HELD_PORTS: list[socket.socket] = []


def free_port() -> int:
    """Find a port that nobody listens at, and nobody gets who does not ask for it by its number."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as whoever is to listen at it
    held.bind(("127.0.0.1", 0))
    HELD_PORTS.append(held)
    return int(held.getsockname()[1])


def launch(
    folder: Path, script: str, *arguments: str, launcher: tuple[str, ...] = TORCHRUN
) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes."""
    path = folder / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", *launcher, str(free_port()), str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
