"""One model and one set of pages through five ways of training: speed, memory, the first step.

    python benchmarks/against_peers.py --size standard --rounds 3

Each turn is a fresh process that takes a first step, timed ones and a last; the ways take turns, so
that all meet the same weather, and medians and ranges over the rounds are printed. All take the
same optimizer steps on the same examples (see `ways.py`): before anything is timed, and again in
each turn, their losses must agree, else the script stops.

Trainer's and TRL's batches are as large as the same token budget allows; all else is at their
defaults, so TRL recomputes its blocks in the backward pass and Trainer does not. The recipe
recomputes, as published. Ours keeps freed memory, which is a part of it; so does the recipe's way,
which runs on our engine.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from draw_pages import PageStyle, draw_pages
from ways import WAYS, Work, own_collator, train

from foveal.bench.random_page import NUM_CROPS, PATCH_SIZE, BenchSize, find_size
from foveal.bench.versions import versions
from foveal.config import TrainSettings
from foveal.data.dataset import read_dataset
from foveal.data.example import read_examples
from foveal.data.parallel import in_new_process
from foveal.models.family import LoadedModel
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.phi3_vision.tiny import TinySizes, cut_vocabulary, tiny_config
from foveal.models.shared_rows import choose_attention
from foveal.plan.resident import reset_most_resident, resident_bytes
from foveal.plan.this_machine import machine_name

TOLERANCE = 1e-4
"""Largest relative difference of two losses, float32."""


def make_work(case: "Case", folder: Path) -> Work:
    """Draw the pages of all steps, and make the model that reads them."""
    size = find_size(case.size)
    if not (folder / "pages.jsonl").exists():
        style, asked = PageStyle(*size.page), (case.questions, case.questions)
        draw_pages(folder, case.steps * case.pages, style=style, questions=asked)
    texts = {
        text
        for example in read_examples(folder / "pages.jsonl")
        for turn in example.turns
        for text in (f"\n{turn.user}", turn.assistant)
    }
    loaded = make_model(size, texts)
    examples, dataset = read_dataset(folder / "pages.jsonl", loaded.processor)
    settings = case.settings(size.tokens_per_pass)
    return Work(loaded, examples, dataset, case.strategy, settings, case.steps)


def make_model(size: BenchSize, texts: set[str]) -> LoadedModel:
    """Make a model of random weights, of a size of `foveal bench`, with a processor that TRL takes.

    Its vocabulary is as large as the size says; the tokenizer uses a part of it.
    """
    tokenizer = cut_vocabulary(texts)
    sizes = TinySizes(
        crop_size=size.crop_size,
        patch_size=PATCH_SIZE,
        tower_width=size.tower_width,
        tower_layers=size.tower_layers,
        tower_heads=size.tower_heads,
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        mlp=size.mlp,
        initial_spread=0.02,
    )
    config = tiny_config(sizes, tokenizer)
    config.vocab_size = max(size.vocabulary, len(tokenizer))
    torch.manual_seed(0)
    model = Phi3VisionForConditionalGeneration(config)
    model.set_attn_implementation(choose_attention("auto"))
    images = Phi3VisionImageProcessor(NUM_CROPS, size.crop_size, size.crop_tokens_side**2)
    return LoadedModel(model, Phi3VisionProcessor(images, tokenizer), FAMILY)


@dataclass(frozen=True)
class Taken:
    """What one turn came to."""

    first_step_seconds: float
    """From the start of its process to the end of its first step."""

    step_seconds: tuple[float, ...]
    """Of each step behind the first, but the last: Trainer opens its pictures a step before."""

    processor_seconds: tuple[float, ...]
    """The same steps, by the processor's clock."""

    peak_bytes: int
    """Most that was held above weights and libraries: activations, gradients, optimizer."""

    losses: tuple[float, ...]


class TimingWatch:
    """Notes when each step ends, and what was held at most."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor_ends: list[float] = []
        self.losses: list[float] = []
        self.before = 0

    def begin(self) -> None:
        """Count memory from here."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            reset_most_resident()
            self.before = resident_bytes("VmRSS")

    def step(self, _: int, loss: float) -> None:
        """Note the time and the loss."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.time())
        self.processor_ends.append(time.process_time())
        self.losses.append(loss)

    def taken(self, started: float) -> Taken:
        """Sum up."""
        cuda = torch.cuda.is_available()
        most = torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM")
        return Taken(
            self.ends[0] - started,
            _differences(self.ends[:-1]),
            _differences(self.processor_ends[:-1]),
            most - self.before,
            tuple(self.losses),
        )


def _differences(ends: Sequence[float]) -> tuple[float, ...]:
    return tuple(end - before for before, end in pairwise(ends))


@dataclass(frozen=True)
class Case:
    """What all ways are set to do."""

    size: str
    strategy: str
    questions: int
    steps: int
    """The first one, timed ones, and the last one."""

    threads: int
    pages: int = 1
    """Of a step."""

    ragged: bool = False
    """Whether pages and answers are of many sizes; the families' benchmark alone."""

    @property
    def examples(self) -> int:
        """Count those of a step."""
        return self.pages * self.questions

    def settings(self, tokens_per_pass: int) -> TrainSettings:
        """Say how all ways train."""
        return TrainSettings(
            examples_per_step=self.examples,
            tokens_per_pass=tokens_per_pass,
            warmup_steps=0,
            schedule="constant",
        )


Make = Callable[[Case, Path], Work]
"""Draws the pages of a case into a folder, and makes the model that reads them."""


def take_turn(make: Make, case: Case, way: str, folder: Path, started: float) -> Taken:
    """Take the steps one way; in a process of its own, started at `started`."""
    torch.set_num_threads(case.threads)
    watch = TimingWatch()
    train(way, make(case, folder), watch)
    return watch.taken(started)


@dataclass(frozen=True)
class Contest:
    """Some ways, over the same steps, in turns."""

    make: Make
    call: Callable[..., Taken] = in_new_process
    """Calls a function in a process of its own."""

    def in_turns(self, case: Case, ways: Sequence[str], rounds: int) -> dict[str, list[Taken]]:
        """Let the ways take turns.

        Raises:
            SystemExit: two of them do not take the same steps.
        """
        turns: dict[str, list[Taken]] = {way: [] for way in ways}
        with TemporaryDirectory() as folder:
            for _ in range(rounds):
                for way in ways:
                    given = self.make, case, way, Path(folder), time.time()
                    turns[way].append(self.call(take_turn, *given))
                    check_losses({name: turn for name, some in turns.items() for turn in some[-1:]})
        return turns

    def those_that_run(self, trial: Case, ways: Sequence[str]) -> list[str]:
        """Try each way by itself; of one that cannot run, print why."""
        found = []
        for way in ways:
            try:
                self.in_turns(trial, [way], 1)
                found.append(way)
            except Exception as error:  # whatever it is, it is to be seen beside the table
                reason = " ".join(str(error).split())
                print(f"{WAYS[way]} cannot run: {type(error).__name__}: {reason}")
        return found

    def compare_collators(self, case: Case) -> str:
        """Say what TRL's own collator does with our processor, or why it cannot."""
        one = replace(case, questions=1, steps=1)
        with TemporaryDirectory() as folder:
            try:
                return own_collator(self.make(one, Path(folder)))
            except Exception as error:  # whatever it is, it is to be seen, not to stop the table
                said = f"{type(error).__name__}: {error}"
                return f"TRL's own collator cannot take our processor: {said}"

    def agreeing_ways(self, trial: Case, ways: Sequence[str]) -> list[str]:
        """See in seconds that all ways run and take the same steps, before the long part."""
        found = self.those_that_run(trial, ways)
        worst = check_losses({way: some[0] for way, some in self.in_turns(trial, found, 1).items()})
        print(f"\n{trial.strategy}: all ways take the same three steps, losses within {worst:.0e}")
        if "trl" in found:
            print(self.compare_collators(trial), flush=True)
        return found

    def measure(
        self, case: Case, ways: Sequence[str], asked: argparse.Namespace
    ) -> list[dict[str, object]]:
        """Print the table of a case; returns every number."""
        turns = self.in_turns(case, ways, asked.rounds)
        print(table(case, turns, asked.processor_time), flush=True)
        return [
            {**asdict(case), "way": way, "turns": [asdict(turn) for turn in some]}
            for way, some in turns.items()
        ]


def check_losses(turns: dict[str, Taken]) -> float:
    """Compare the losses of the ways; returns the largest relative difference.

    Raises:
        SystemExit: they do not agree.
    """
    ways = list(turns)
    worst = 0.0
    for way in ways[1:]:
        for one, other in zip(turns[ways[0]].losses, turns[way].losses, strict=True):
            worst = max(worst, abs(one - other) / abs(one))
            if worst > TOLERANCE:
                raise SystemExit(
                    f"{WAYS[ways[0]]} and {WAYS[way]} do not take the same steps: "
                    f"losses {turns[ways[0]].losses} and {turns[way].losses}"
                )
    return worst


def table(case: Case, turns: dict[str, list[Taken]], processor_time: bool) -> str:
    """Write a Markdown table of one case."""
    clock = "processor_seconds" if processor_time else "step_seconds"
    rows = ", ragged" if case.ragged else ""
    lines = [
        f"\n{case.strategy}, {case.questions} questions a page{rows}\n",
        "| way | examples/s | range | ours is | peak GB | range | first step, s | range |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    speeds = {
        way: [case.examples / seconds for turn in some for seconds in getattr(turn, clock)]
        for way, some in turns.items()
    }
    for way, some in turns.items():
        ours = median(speeds["shared"]) / median(speeds[way]) if "shared" in speeds else 0
        peaks = [turn.peak_bytes / 1e9 for turn in some]
        firsts = [turn.first_step_seconds for turn in some]
        lines.append(
            f"| {WAYS[way]} | {_middle_and_range(speeds[way], 3)} | "
            f"{f'{ours:.2f}x' if way != 'shared' and ours else ''} | "
            f"{_middle_and_range(peaks, 2)} | {_middle_and_range(firsts, 1)} |"
        )
    return "\n".join(lines)


def _middle_and_range(values: Sequence[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} | {low:.{digits}f} to {high:.{digits}f}"


def make_parser(about: str, ways: Sequence[str], strategies: Sequence[str]) -> Any:
    """Make the options that every contest has."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed ones of a turn")
    parser.add_argument("--questions", default="1,4", help="of a page, with commas")
    parser.add_argument("--strategies", default=",".join(strategies))
    parser.add_argument("--ways", default=",".join(ways))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--processor-time", action="store_true", help="other processes do not count"
    )
    parser.add_argument("--out", type=Path, help="JSON file for every number")
    return parser


def tell_machine(asked: argparse.Namespace, sizes: str) -> None:
    """Print where and with what is measured."""
    print(f"{machine_name()}, {asked.threads} threads, float32, {sizes}")
    print(", ".join(f"{name} {number}" for name, number in versions().items()), flush=True)


def write_numbers(out: Path | None, tree: list[dict[str, object]]) -> None:
    """Write every number so far, where it was asked for."""
    if out:
        whole = {"machine": machine_name(), "versions": versions(), "cases": tree}
        out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__, tuple(WAYS), ("full", "frozen_vision", "lora"))
    parser.add_argument("--size", default="standard")
    asked = parser.parse_args()
    tell_machine(asked, f"size {asked.size}")
    contest = Contest(make_work)
    tree: list[dict[str, object]] = []
    for strategy in asked.strategies.split(","):
        trial = Case("tiny", strategy, 4, 3, asked.threads)
        ways = contest.agreeing_ways(trial, asked.ways.split(","))
        for questions in map(int, asked.questions.split(",")):
            case = Case(asked.size, strategy, questions, 2 + asked.steps, asked.threads)
            tree += contest.measure(case, ways, asked)
            write_numbers(asked.out, tree)


if __name__ == "__main__":
    main()
