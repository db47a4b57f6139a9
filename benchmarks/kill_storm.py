"""Kill a run again and again, at any instant, and see that it ends as one that was left alone.

    python benchmarks/kill_storm.py [RECIPE] [key=value ...] [--kills 200] [--only encoding]

Without a recipe a tiny model learns from pictures made here. One process loads everything and
forks the runs, so that a kill costs a second. Exit status: 0 all the same, 1 something differed.
"""

import argparse
import importlib
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import safe_open

from foveal.config import Recipe, load_recipe
from foveal.data import dataset
from foveal.data.encoded import encoding
from foveal.run import TrainingRun
from foveal.train import loop
from foveal.train.checkpoint import OPTIMIZER, WEIGHTS, checkpoints, read_progress

ANYWHERE = "anywhere"
PHASES = (
    *("starting", "encoding", "stepping", "saving", "evaluating", "between passes", "ending"),
)

CHUNK_BYTES = 200
"""Bytes of a file that are encoded together: pieces enough to be killed between."""


class Phases:
    """What a run is doing, told to the process that forked it; how long each took."""

    def __init__(self) -> None:
        self._now = mmap.mmap(-1, 1)
        self._since = time.monotonic()
        self.seconds: dict[str, list[float]] = {name: [] for name in PHASES}

    @property
    def now(self) -> str:
        """Name what the run is doing."""
        return PHASES[self._now[0]]

    def enter(self, name: str) -> None:
        """Begin something, and end what came before."""
        at = time.monotonic()
        self.seconds[self.now].append(at - self._since)
        self._now[0], self._since = PHASES.index(name), at

    def during(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Have a function say that it runs."""

        def told(*arguments: Any, **named: Any) -> Any:
            before = self.now
            self.enter(name)
            try:
                return work(*arguments, **named)
            finally:
                self.enter(before)

        return told

    def watch_runs(self) -> None:
        """In a forked process: have a run say what it does."""
        data: Any = dataset
        training: Any = loop
        run: Any = TrainingRun
        data.encode_file = self.during("encoding", data.encode_file)
        data.measure_examples = self.during("encoding", data.measure_examples)
        training.save_checkpoint = self.during("saving", training.save_checkpoint)
        training.prune = self.during("saving", training.prune)
        run.evaluate = self.during("evaluating", run.evaluate)
        run._write_out = self.during("ending", run._write_out)
        take_step, until = training.train_step, training.StepLoader.examples_until

        def step(*arguments: Any) -> Any:
            self.enter("stepping")
            return take_step(*arguments)

        def examples_until(loader: Any, taken: int) -> int:  # called behind every step
            if taken % loader.planner.steps_per_epoch == 0:
                self.enter("between passes")
            return int(until(loader, taken))

        training.train_step = step
        training.StepLoader.examples_until = examples_until


def fork_run(recipe: Recipe, phases: Phases, notes: Path | None = None) -> int:
    """Start a run in a process of its own; it may leave notes of what it took."""
    phases.enter("starting")
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        phases.watch_runs()
        TrainingRun(recipe, Console(quiet=True)).go()
        if notes:
            notes.write_text(json.dumps([phases.seconds, list(sys.modules)]), encoding="utf-8")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process: int) -> bool:
    """Tell whether a run has ended by itself.

    Raises:
        SystemExit: it has, with an error.
    """
    found, status = os.waitpid(process, os.WNOHANG)
    if found and status:
        raise SystemExit("a run that was started again ended with an error")
    return bool(found)


def kill_once(process: int, target: str, delay: float, phases: Phases) -> str | None:
    """Kill a run `delay` seconds into a phase; returns the phase that was hit, if one was."""
    while target not in (ANYWHERE, phases.now):
        if ended(process):
            return None
        time.sleep(0.0002)
    time.sleep(delay)
    if ended(process):
        return None
    hit = phases.now
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return hit if os.WIFSIGNALED(status) else None


def check_checkpoints(run: Path) -> None:
    """See that every folder that looks like a checkpoint is one."""
    for checkpoint in checkpoints(run / "checkpoints"):
        read_progress(checkpoint)
        for name in (WEIGHTS, OPTIMIZER):
            with safe_open(checkpoint / name, "pt") as file:
                list(file.keys())


def contents(run: Path) -> dict[str, object]:
    """Read all of a run that must be the same, by file."""
    kept: dict[str, object] = {}
    for place in ("final", "checkpoints", "evaluation"):
        for path in sorted((run / place).rglob("*")):
            if path.is_file():
                kept[str(path.relative_to(run))] = path.read_bytes()
    for name in ("metrics.jsonl", "incidents.jsonl"):
        lines = (
            (run / name).read_text(encoding="utf-8").splitlines() if (run / name).exists() else []
        )
        measured = {"seconds": None, "memory_bytes": None}  # of this machine at that hour
        kept[name] = [{**json.loads(line), **measured} for line in lines]
    return kept


def same(run: Path, whole: Path) -> bool:
    """Compare a run with the one that was left alone; say what differs."""
    ours, theirs = contents(run), contents(whole)
    odd = [
        name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)
    ]
    for name in odd:
        print(f"{run.name}: {name} differs")
    return not odd


def storm(recipe: Recipe, out: Path, kills: int, seed: int, only: str | None = None) -> bool:
    """Run once in peace, then under kills, run after run, until there were enough."""
    choose, phases = random.Random(seed), Phases()
    encoding.CHUNK_BYTES = CHUNK_BYTES

    def place(name: str) -> Recipe:
        return recipe.model_copy(update={"run": out / name})

    started = time.monotonic()
    whole = fork_run(place("whole"), phases, out / "notes.json")
    os.waitpid(whole, 0)
    took = time.monotonic() - started
    seconds, modules = json.loads((out / "notes.json").read_text(encoding="utf-8"))
    for name in modules:  # the runs to come find them loaded
        if name not in sys.modules and "." in name:
            try:
                importlib.import_module(name)
            except Exception:
                continue
    hits: Counter[str] = Counter()
    rounds, good, unfinished = 0, True, False
    while hits.total() < kills or unfinished:
        now = place(f"killed-{rounds}")
        process, hit = fork_run(now, phases), None
        if hits.total() < kills:
            target = choose.choice(
                [only] if only else [ANYWHERE, *(name for name in PHASES if seconds[name])]
            )
            spans = [took] if target == ANYWHERE else seconds[target]
            hit = kill_once(process, target, choose.uniform(0, choose.choice(spans)), phases)
        else:
            os.waitpid(process, 0)
        unfinished = hit is not None
        if hit:
            hits[hit] += 1
            check_checkpoints(now.run)
        else:
            good = same(now.run, out / "whole") and good
            rounds += 1
    told = ", ".join(f"{count} {name}" for name, count in hits.most_common())
    print(
        f"{hits.total()} kills ({told}) over {rounds} runs in {time.monotonic() - started:.0f} s: "
        + ("all ended with the same bits and the same lines" if good else "NOT the same")
    )
    return good


def tiny_recipe(folder: Path) -> Path:
    """Write a tiny model, pictures with questions, and a recipe that does all that a run can."""
    import numpy as np
    from PIL import Image

    from foveal.models.phi3_vision.tiny import TinySizes, write_tiny

    width = {"tower_width": 32, "tower_layers": 2, "tower_heads": 2, "width": 32, "layers": 2}
    write_tiny(folder / "model", 0, TinySizes(crop_size=28, patch_size=7, heads=2, **width))
    (folder / "images").mkdir()
    lines = []
    for page in range(7):
        pixels = np.random.default_rng(page).integers(0, 256, (40, 60, 3), np.uint8)
        path = folder / "images" / f"{page}.png"
        Image.fromarray(pixels).save(path)
        if page == 6:  # its header is fine; it is found in mid-run and left out
            path.write_bytes(path.read_bytes()[:-2000])
        for number in range(3):
            turn = {"images": [f"{page}.png"], "user": f"What is {number}?", "assistant": f"{page}"}
            lines.append({"id": f"{page}-{number}", "source": "storm", "conversations": [turn]})
    for name, some in (("train", lines), ("validation", lines[:2])):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in some), encoding="utf-8"
        )
    tree = {
        "model": str(folder / "model"),
        "run": str(folder / "run"),
        "precision": "float32",
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "workers": 0,
            "num_crops": 2,
            "max_bad_fraction": 0.5,
        },
        "train": {
            "epochs": 3,
            "examples_per_step": 6,
            "save_every_steps": 3,
            "evaluate_every_steps": 4,
            "best_metric": "anls",
            "learning_rate": 0.01,
            "warmup_steps": 1,
        },
        "evaluate": {"max_new_tokens": 3},
    }
    recipe = folder / "recipe.json"  # which YAML reads too
    recipe.write_text(json.dumps(tree), encoding="utf-8")
    return recipe


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line; none: that of this program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PHASES, help="kill in this phase alone")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    out = asked.out or Path(tempfile.mkdtemp(prefix="kill-storm-"))
    out.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(asked.recipe or tiny_recipe(out), tuple(asked.overrides))
    raise SystemExit(0 if storm(recipe, out, asked.kills, asked.seed, asked.only) else 1)


if __name__ == "__main__":
    main()
