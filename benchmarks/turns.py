"""Ways of taking the same steps, each turn in a process of its own -> medians, ranges, a table.

Each turn takes a first step and then timed ones; the ways take turns, so that all meet the same
weather. Whether their losses agree is seen in each turn: ways that do other steps are not timed.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from versions import versions

from foveal.data.parallel import in_new_process
from foveal.machine import machine_name
from foveal.plan.this_machine import reset_most_resident, resident_bytes

TOLERANCE = 1e-4
"""Largest difference of two losses, relative where they are above 1 nat; float32."""


@dataclass(frozen=True)
class Case:
    """What all ways are set to do."""

    size: str
    strategy: str
    questions: int
    """About a page."""

    steps: int
    """Those that are timed, and those that are not."""

    threads: int
    pages: int = 1
    """Of a step."""

    ragged: bool = False
    """Whether pages and answers are of many sizes; the families' benchmark alone."""

    @property
    def examples(self) -> int:
        """Count those of a step."""
        return self.pages * self.questions


@dataclass(frozen=True)
class Taken:
    """What one turn came to."""

    first_step_seconds: float
    """From the start of its process to the end of its first step."""

    step_seconds: tuple[float, ...]
    """Of each timed step."""

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
        self.share = (0.0, 0.0)
        """Of what was done before all steps, what each is charged for: seconds by both clocks."""

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

    def taken(self, started: float, untimed: int = 1) -> Taken:
        """Sum up.

        Args:
            started: when the process did.
            untimed: steps that do not count: the first, and as many of the last.
        """
        cuda = torch.cuda.is_available()
        most = torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM")
        clocks = zip((self.ends, self.processor_ends), self.share, strict=True)
        count = len(self.ends) - untimed + 1
        wall, processor = (
            tuple(end - before + share for before, end in pairwise(ends[:count]))
            for ends, share in clocks
        )
        losses = tuple(self.losses)
        return Taken(self.ends[0] - started, wall, processor, most - self.before, losses)


TakeTurn = Callable[[Case, str, Path, float], Taken]
"""Takes the steps of a case one way; in a process of its own, started at the last argument."""

Call = Callable[..., Taken]
"""Calls a function in a process of its own."""


def in_turns(
    take_turn: TakeTurn,
    case: Case,
    ways: Sequence[str],
    rounds: int,
    compared: int | None = None,
    call: Call = in_new_process,
) -> dict[str, list[Taken]]:
    """Let the ways take turns.

    Args:
        take_turn: of one way.
        case: what they are set to do.
        ways: by name.
        rounds: turns of each.
        compared: first steps whose losses must agree; none: all.
        call: starts the process of a turn.

    Raises:
        SystemExit: two of them do not take the same steps.
    """
    turns: dict[str, list[Taken]] = {way: [] for way in ways}
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way in ways:
                turns[way].append(call(take_turn, case, way, Path(folder), time.time()))
                last = {name: turn for name, some in turns.items() for turn in some[-1:]}
                check_losses(last, compared)
    return turns


def check_losses(turns: Mapping[str, Taken], compared: int | None = None) -> float:
    """Compare the losses of the ways; returns the largest difference.

    Raises:
        SystemExit: they do not agree.
    """
    losses = {way: turn.losses[:compared] for way, turn in turns.items()}
    first, worst = next(iter(losses)), 0.0
    for way, own in losses.items():
        for one, other in zip(losses[first], own, strict=True):
            worst = max(worst, abs(one - other) / max(abs(one), 1.0))
        if worst > TOLERANCE:
            raise SystemExit(
                f"{first} and {way} do not take the same steps: losses {losses[first]} and {own}"
            )
    return worst


def table(
    case: Case,
    turns: Mapping[str, Sequence[Taken]],
    names: Mapping[str, str],
    processor_time: bool,
    counted: str = "questions",
) -> str:
    """Write a Markdown table of one case; `counted` is what a page has so many of."""
    clock = "processor_seconds" if processor_time else "step_seconds"
    columns = [f"{counted}/s", "range", "ours is", "peak GB", "range", "ours needs"]
    columns += ["first step, s", "range"]
    rows = ", ragged" if case.ragged else ""
    lines = [
        f"\n{case.strategy}, {case.questions} {counted} a page{rows}\n",
        f"| way | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    speeds = {
        way: [case.examples / seconds for turn in some for seconds in getattr(turn, clock)]
        for way, some in turns.items()
    }
    peaks = {way: [turn.peak_bytes / 1e9 for turn in some] for way, some in turns.items()}
    for way, some in turns.items():
        faster = smaller = ""
        if way != "shared" and "shared" in turns:
            faster = f"{median(speeds['shared']) / median(speeds[way]):.2f}x"
            smaller = f"{median(peaks['shared']) / median(peaks[way]):.0%}"
        firsts = [turn.first_step_seconds for turn in some]
        lines.append(
            f"| {names[way]} | {_middle_and_range(speeds[way], 3)} | {faster} | "
            f"{_middle_and_range(peaks[way], 2)} | {smaller} | {_middle_and_range(firsts, 1)} |"
        )
    return "\n".join(lines)


def _middle_and_range(values: Sequence[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} | {low:.{digits}f} to {high:.{digits}f}"


def asking(
    description: str, names: Mapping[str, str], strategies: Iterable[str]
) -> argparse.ArgumentParser:
    """Make a parser of what every such script asks."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--size", default="standard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed ones of a turn")
    parser.add_argument("--questions", default="1,4", help="of a page, with commas")
    parser.add_argument("--strategies", default=",".join(strategies))
    parser.add_argument("--ways", default=",".join(names))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--processor-time", action="store_true", help="other processes do not count"
    )
    parser.add_argument("--out", type=Path, help="JSON file for every number")
    return parser


def cases_of(asked: argparse.Namespace, strategy: str, untimed: int = 1) -> list[Case]:
    """List the cases of a strategy, one a number of questions."""
    return [
        Case(asked.size, strategy, questions, untimed + asked.steps, asked.threads)
        for questions in map(int, asked.questions.split(","))
    ]


class Results:
    """Prints what is found, and keeps every number."""

    def __init__(
        self, asked: argparse.Namespace, names: Mapping[str, str], counted: str, sizes: str
    ) -> None:
        self.asked, self.names, self.counted = asked, names, counted
        self.cases: list[dict[str, object]] = []
        print(f"{machine_name()}, {asked.threads} threads, float32, {sizes}")
        print(", ".join(f"{name} {number}" for name, number in versions().items()), flush=True)

    def add(self, case: Case, turns: Mapping[str, Sequence[Taken]]) -> None:
        """Print a case, and write all so far."""
        asked = self.asked
        print(table(case, turns, self.names, asked.processor_time, self.counted), flush=True)
        self.cases += [
            {**asdict(case), "way": way, "turns": [asdict(turn) for turn in some]}
            for way, some in turns.items()
        ]
        if asked.out:
            whole = {"machine": machine_name(), "versions": versions(), "cases": self.cases}
            asked.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
