"""How soon each way of taking the same steps comes to the same accuracy: a table and a plot.

    taskset -c 0 python benchmarks/time_to_accuracy.py --folder runs/time-to-accuracy

Two tasks, a tiny model each, several seeds. `pages` begins from random weights and learns to tell
four things of each printed line (`draw_pages.py`). `pairs` begins from a model that knows
single NLVR pictures (trained once, before the clock runs) and learns statements about two; it is
scored on the bundled pairs. Every way (see `ways.py`) takes the same steps on the same examples,
so its curve is the others' but for rounding, on its own clock. Evaluation is not timed; opening
pictures is.

Each run is kept in FOLDER/results.jsonl and not made again, so the work can be done in pieces.
Writes results.json, table.md and time-to-accuracy.svg beside it.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from draw_pages import draw_pages
from rich.console import Console
from versions import versions
from ways import WAYS, Work, train

from foveal.config import EvaluateSettings, Recipe, TrainSettings
from foveal.data.convert import convert
from foveal.data.dataset import read_dataset
from foveal.data.example import read_examples, write_examples
from foveal.data.parallel import in_new_process
from foveal.demo.lessons import (
    Lesson,
    examples_of,
    statements_about_one,
    statements_about_two,
)
from foveal.demo.walk import DATA, LESSONS, read_scenes
from foveal.evaluate.evaluation import evaluate_into
from foveal.inputs import make_tiny
from foveal.machine import machine_name
from foveal.models.loading import load
from foveal.run import TrainingRun
from foveal.train.engines.one_process import Engine

NUM_CROPS = 4
LEARNING: dict[str, Any] = {
    "examples_per_step": 24,
    "tokens_per_pass": 8192,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "warmup_steps": 10,
    "beta2": 0.99,
    "gradient_clip": 0.3,
}
"""Of all runs; as the demo learns."""


@dataclass(frozen=True)
class Task:
    """What is learnt, from which weights, and how it is scored."""

    steps: int
    every: int
    """Steps from score to score."""

    target: float
    """Accuracy whose time is compared."""

    title: str
    make: Callable[[Path, int], None]
    """(folder, seed) -> train.jsonl, test.jsonl with images, and the first weights in model/."""


def make_pages(folder: Path, seed: int) -> None:
    """Draw pages, and make a model of random weights."""
    steps = TASKS["pages"].steps
    train_file = draw_pages(folder, pages=steps * 7, seed=seed, name="train")
    keep_whole_steps(train_file, steps * LEARNING["examples_per_step"])
    draw_pages(folder, pages=60, seed=1000, name="test")
    recipe = recipe_for(folder / "pages", "phi3-vision-tiny", train_file, seed)
    make_tiny(recipe, [train_file], folder / "model")


def make_pairs(folder: Path, seed: int) -> None:
    """Lay out statements about two pictures; the model was taught single ones, once for all."""
    base, steps = folder.parent / "pairs-base", TASKS["pairs"].steps
    data = base / "data"
    if not (base / "run" / "final" / "config.json").exists():
        teach_single_images(base)
    lesson = Lesson(f"pairs-{seed}", 2, steps * LEARNING["examples_per_step"] // 7 + 1, 7)
    pairs = examples_of(lesson, read_scenes(data), statements_about_two(), seed)
    judged = [one for one in pairs if one.turns[0].choices]  # not those that count
    write_examples(folder / "train.jsonl", judged)
    keep_whole_steps(folder / "train.jsonl", steps * LEARNING["examples_per_step"])
    write_examples(folder / "test.jsonl", read_examples(data / "nlvr_pairs_dev.jsonl"))
    (folder / "images").symlink_to((data / "images").resolve())
    (folder / "model").symlink_to((base / "run" / "final").resolve())


def teach_single_images(base: Path) -> None:
    """Take the demo's lessons about one picture, as `foveal train` does."""
    data = base / "data"
    convert("nlvr", DATA, data)
    scenes, about = read_scenes(data), {1: statements_about_one(), 2: statements_about_two()}
    files = []
    for name, lessons in (("before", LESSONS[:-1]), ("pairs", LESSONS[-1:])):
        some = (examples_of(one, scenes, about[one.num_images], 0) for one in lessons)
        write_examples(data / f"{name}.jsonl", chain.from_iterable(some))
        files.append(data / f"{name}.jsonl")
    recipe = recipe_for(base / "run", "phi3-vision-tiny", files[0], seed=0, order="as_is")
    make_tiny(recipe, files, base / "start")
    recipe = recipe_for(base / "run", str(base / "start"), files[0], seed=0, order="as_is")
    TrainingRun(recipe, Console(stderr=True)).go()


def recipe_for(run: Path, model: str, train_file: Path, seed: int, **data: Any) -> Recipe:
    """Write a recipe down."""
    files = {"train": train_file, "num_crops": NUM_CROPS, "workers": 0, **data}
    settings = {**LEARNING, "seed": seed, "save_every_steps": 10_000}
    tree = {"model": model, "run": run, "precision": "float32", "data": files, "train": settings}
    return Recipe.model_validate(tree)


def keep_whole_steps(path: Path, count: int) -> None:
    """Cut a file to so many examples.

    Raises:
        ValueError: it has not so many.
    """
    examples = list(read_examples(path))
    if len(examples) < count:
        raise ValueError(f"{path}: {len(examples)} examples, {count} are needed")
    write_examples(path, examples[:count])


TASKS = {
    "pages": Task(480, 20, 0.7, "printed pages, 1 to 8 questions each", make_pages),
    "pairs": Task(160, 20, 0.67, "NLVR pairs, 7 statements each", make_pairs),
}


@dataclass(frozen=True)
class Point:
    """An accuracy, and what it took to come there."""

    step: int
    seconds: float
    """Of training, by the clock on the wall."""

    processor_seconds: float
    accuracy: float


class ScoringWatch:
    """Stops both clocks while it evaluates."""

    def __init__(self, task: Task, folder: Path, work: Work) -> None:
        self.task, self.folder, self.trained = task, folder, work.loaded.model
        # A model of its own: scoring leaves no trace in the one that learns.
        self.judged = load(str(folder / "model"), NUM_CROPS)
        self.examples, self.dataset = read_dataset(folder / "test.jsonl", self.judged.processor)
        self.workers = Engine("float32")
        self.points: list[Point] = []
        self.seconds = self.processor_seconds = 0.0

    def begin(self) -> None:
        """Score the first weights; then the clocks run."""
        self._score(0)
        self._start()

    def step(self, taken: int, _: float) -> None:
        """Score where it is time to."""
        if taken % self.task.every == 0 or taken == self.task.steps:
            self.seconds += time.perf_counter() - self.started
            self.processor_seconds += time.process_time() - self.processor_started
            self._score(taken)
            self._start()

    def _start(self) -> None:
        self.started, self.processor_started = time.perf_counter(), time.process_time()

    def _score(self, taken: int) -> None:
        self.judged.model.load_state_dict(self.trained.state_dict())
        quiet = Console(quiet=True)
        with TemporaryDirectory() as place:
            scores = evaluate_into(
                Path(place) / "scores",
                self.judged,
                self.examples,
                self.dataset,
                EvaluateSettings(metrics=("accuracy",), max_new_tokens=8),
                self.workers,
                quiet,
            )
        assert scores is not None  # nobody stops it
        accuracy = scores["accuracy"].value
        self.points.append(Point(taken, self.seconds, self.processor_seconds, accuracy))


def run_one(name: str, way: str, seed: int, folder: Path, threads: int) -> list[Point]:
    """Train one way and score on the way; in a process of its own."""
    torch.set_num_threads(threads)
    task = TASKS[name]
    loaded = load(str(folder / "model"), NUM_CROPS)
    examples, dataset = read_dataset(folder / "train.jsonl", loaded.processor)
    settings = TrainSettings(**LEARNING, seed=seed)
    work = Work(loaded, examples, dataset, "full", settings, task.steps)
    watch = ScoringWatch(task, folder, work)
    train(way, work, watch)
    return watch.points


@dataclass(frozen=True)
class Run:
    """One finished run, a line of results.jsonl."""

    task: str
    way: str
    seed: int
    steps: int
    threads: int
    points: tuple[Point, ...]

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What makes it the same run."""
        return self.task, self.way, self.seed, self.steps, self.threads

    def reached(self, target: float) -> Point | None:
        """Find where it first came to an accuracy."""
        return next((point for point in self.points if point.accuracy >= target), None)


def read_runs(path: Path) -> list[Run]:
    """Read the finished runs."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    trees = [json.loads(line) for line in lines]
    return [Run(**{**tree, "points": tuple(Point(**p) for p in tree["points"])}) for tree in trees]


def table(runs: Sequence[Run]) -> str:
    """Write a Markdown table: where each way ends, and its seconds of training.

    All of them, and those to the target by the clock on the wall and by the processor's.
    """
    lines = [
        "| task | way | accuracy at the end | seconds | to the target | processor's | ours is |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, task in TASKS.items():
        of_task = [run for run in runs if run.task == name]
        ours = _seconds_to([run for run in of_task if run.way == "shared"], task.target)
        for way, title in WAYS.items():
            some = [run for run in of_task if run.way == way]
            if not some:
                continue
            ends = [run.points[-1] for run in some]
            accuracies = [100 * end.accuracy for end in ends]
            wall = _seconds_to(some, task.target)
            processor = _seconds_to(some, task.target, "processor_seconds")
            ratio = f"{wall / ours:.1f}x as fast" if wall and ours and way != "shared" else ""
            lines.append(
                f"| {task.title}, {100 * task.target:.0f} % | {title} | {mean(accuracies):.1f} % "
                f"({min(accuracies):.1f} to {max(accuracies):.1f}, {len(some)} seeds) "
                f"| {median(end.seconds for end in ends):.1f} | {_shown(wall)} "
                f"| {_shown(processor)} | {ratio} |"
            )
    return "\n".join(lines) + "\n"


def _seconds_to(runs: Sequence[Run], target: float, clock: str = "seconds") -> float | None:
    """Take the median over seeds; none where a seed never comes there."""
    found = [run.reached(target) for run in runs]
    reached = [float(getattr(point, clock)) for point in found if point]
    return median(reached) if reached and len(reached) == len(found) else None


def _shown(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds:.1f}"


COLORS = {"recipe": "#d1495b", "trainer": "#c77b0a", "trl": "#8a6fd1", "separate": "#3d8fd1"}
OURS, GREY = "#2a9d5c", "#808890"
"""Middle tones: they stand out on white and on black alike."""


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw accuracy against seconds, a thin line a seed and a thick one for their mean."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    settings = {
        "svg.hashsalt": "time-to-accuracy",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    grey = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")
    colours: Any = dict.fromkeys(grey, GREY)
    with rc_context(settings | colours):
        shown = [name for name in TASKS if any(run.task == name for run in runs)]
        figure = Figure(figsize=(4.8 * len(shown), 3.6), layout="constrained")
        figure.patch.set_alpha(0)
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            axes.patch.set_alpha(0)
            for way, title in WAYS.items():
                some = [run for run in runs if (run.task, run.way) == (name, way)]
                _draw_way(axes, some, title, COLORS.get(way, OURS))
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("seconds of training")
            axes.set_ylabel("accuracy, %")
            axes.set_title(TASKS[name].title, fontsize=10)
            axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        lines, names = axes.get_legend_handles_labels()
        figure.legend(lines, names, frameon=False, loc="outside lower center", ncols=len(names))
        figure.savefig(path, metadata={"Date": None})


def _draw_way(axes: Any, runs: Sequence[Run], title: str, color: str) -> None:
    curves = [[(p.seconds, 100 * p.accuracy) for p in run.points if p.step] for run in runs]
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), color=color, alpha=0.35, linewidth=0.8)
    if curves:
        means = [tuple(map(mean, zip(*at, strict=True))) for at in zip(*curves, strict=True)]
        axes.plot(*zip(*means, strict=True), color=color, linewidth=2, label=title)


def write_all(folder: Path, runs: Sequence[Run]) -> None:
    """Write the numbers, the table and the plot."""
    tree = {"versions": versions(), "machine": machine_name(), "learning": LEARNING}
    whole = {**tree, "runs": [asdict(run) for run in runs]}
    (folder / "results.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table(runs), encoding="utf-8")
    plot(runs, folder / "time-to-accuracy.svg")


def main() -> None:
    """Make the runs that are not there yet, then write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/time-to-accuracy"))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--ways", default="shared,separate,trainer,recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    kept = asked.folder / "results.jsonl"
    for seed in range(asked.seeds):
        for name in asked.tasks.split(","):
            place = asked.folder / f"{name}-{seed}"
            for way in asked.ways.split(","):
                key = (name, way, seed, TASKS[name].steps, asked.threads)
                if key in {run.key for run in read_runs(kept)}:
                    continue
                if not (place / "model" / "config.json").exists():
                    place.mkdir(parents=True, exist_ok=True)
                    in_new_process(TASKS[name].make, place, seed)
                points = in_new_process(run_one, name, way, seed, place, asked.threads)
                run = Run(*key, tuple(points))
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                end = points[-1]
                print(
                    f"{name}, seed {seed}, {WAYS[way]}: {100 * end.accuracy:.1f} % "
                    f"after {end.seconds:.1f} s ({end.processor_seconds:.1f} of a processor)",
                    flush=True,
                )
    runs = read_runs(kept)
    write_all(asked.folder, runs)
    print(table(runs))


if __name__ == "__main__":
    main()
