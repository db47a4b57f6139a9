"""One model and one set of pages through five ways of training: speed, memory, the first step.

    python benchmarks/against_peers.py --size standard --rounds 3

Each turn is a fresh process that takes a first step and then timed ones; the ways take turns, so
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from draw_pages import PageStyle, draw_pages
from ways import STRATEGIES, WAYS, Work, own_collator, train

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


def make_work(size: BenchSize, strategy: str, questions: int, steps: int, folder: Path) -> Work:
    """Draw a page a step, with so many questions, and make the model that reads them."""
    style = PageStyle(*size.page)
    if not (folder / "pages.jsonl").exists():
        draw_pages(folder, steps, style=style, questions=(questions, questions))
    texts = {
        text
        for example in read_examples(folder / "pages.jsonl")
        for turn in example.turns
        for text in (f"\n{turn.user}", turn.assistant)
    }
    loaded = make_model(size, texts)
    examples, dataset = read_dataset(folder / "pages.jsonl", loaded.processor)
    settings = TrainSettings(
        examples_per_step=questions,
        tokens_per_pass=size.tokens_per_pass,
        warmup_steps=0,
        schedule="constant",
    )
    return Work(loaded, examples, dataset, strategy, settings, steps)


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
    """Of each step behind the first."""

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
            _differences(self.ends),
            _differences(self.processor_ends),
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
    """The first one, and timed ones."""

    threads: int


def take_turn(case: Case, way: str, folder: Path, started: float) -> Taken:
    """Take the steps one way; in a process of its own, started at `started`."""
    torch.set_num_threads(case.threads)
    watch = TimingWatch()
    size = find_size(case.size)
    train(way, make_work(size, case.strategy, case.questions, case.steps, folder), watch)
    return watch.taken(started)


def in_turns(case: Case, ways: Sequence[str], rounds: int) -> dict[str, list[Taken]]:
    """Let the ways take turns.

    Raises:
        SystemExit: two of them do not take the same steps.
    """
    turns: dict[str, list[Taken]] = {way: [] for way in ways}
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way in ways:
                turns[way].append(in_new_process(take_turn, case, way, Path(folder), time.time()))
                check_losses({name: turn for name, some in turns.items() for turn in some[-1:]})
    return turns


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
    lines = [
        f"\n{case.strategy}, {case.questions} questions a page\n",
        "| way | examples/s | range | ours is | peak GB | range | first step, s | range |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    speeds = {
        way: [case.questions / seconds for turn in some for seconds in getattr(turn, clock)]
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


def compare_collators(case: Case) -> str:
    """Say what TRL's own collator does with our processor, or why it cannot."""
    with TemporaryDirectory() as folder:
        work = make_work(find_size("tiny"), case.strategy, 1, 1, Path(folder))
        try:
            return own_collator(work)
        except Exception as error:  # whatever it is, it is to be seen, not to stop the table
            return f"TRL's own collator cannot take our processor: {type(error).__name__}: {error}"


def those_that_run(trial: Case, ways: Sequence[str]) -> list[str]:
    """Try each way by itself; of one that cannot run, print why."""
    found = []
    for way in ways:
        try:
            in_turns(trial, [way], 1)
            found.append(way)
        except Exception as error:  # whatever it is, it is to be seen beside the table
            reason = " ".join(str(error).split())
            print(f"{WAYS[way]} cannot run: {type(error).__name__}: {reason}")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="standard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed ones of a turn")
    parser.add_argument("--questions", default="1,4", help="of a page, with commas")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--processor-time", action="store_true", help="other processes do not count"
    )
    parser.add_argument("--out", type=Path, help="JSON file for every number")
    asked = parser.parse_args()
    print(f"{machine_name()}, {asked.threads} threads, float32, size {asked.size}")
    print(", ".join(f"{name} {number}" for name, number in versions().items()), flush=True)
    tree: list[dict[str, object]] = []
    for strategy in asked.strategies.split(","):
        # The same in seconds, to see that all ways run and agree before the long part.
        trial = Case("tiny", strategy, 4, 3, asked.threads)
        ways = those_that_run(trial, asked.ways.split(","))
        worst = check_losses({way: some[0] for way, some in in_turns(trial, ways, 1).items()})
        print(f"\n{strategy}: all ways take the same three steps, losses within {worst:.0e}")
        if "trl" in ways:
            print(compare_collators(trial), flush=True)
        for questions in map(int, asked.questions.split(",")):
            case = Case(asked.size, strategy, questions, 1 + asked.steps, asked.threads)
            turns = in_turns(case, ways, asked.rounds)
            print(table(case, turns, asked.processor_time), flush=True)
            tree += [
                {**asdict(case), "way": way, "turns": [asdict(turn) for turn in some]}
                for way, some in turns.items()
            ]
            if asked.out:
                whole = {"machine": machine_name(), "versions": versions(), "cases": tree}
                asked.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
