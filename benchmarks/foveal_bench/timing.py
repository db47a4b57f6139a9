"""A size and strategies -> what both ways do a second, and what they hold, as a table or JSON."""

import ctypes
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from foveal.data.parallel import in_new_process
from foveal.errors import ConfigError
from foveal.machine import machine_name
from foveal.plan.epoch import count_groups
from foveal.plan.this_machine import matrix_speed, reset_most_resident, resident_bytes
from foveal_bench.contender import Case, Contender, Way, costs_of
from foveal_bench.operations import Operations, useful_operations
from foveal_bench.random_page import BenchSize, LetterProcessor, find_size

STRATEGIES = ("full", "frozen_vision", "lora")
QUESTIONS = (1, 4)
"""A page's questions: no sharing possible, and about what a page of DocVQA has."""

SHOWN: dict[Way, str] = {
    "recipe": "recipe's way",
    "separate": "not shared",
    "shared": "ours",
    "light": "light",
    "recompute": "recomputed",
}
"""Each way's name in the table."""


@dataclass(frozen=True)
class Timed:
    """What the steps of one case took."""

    seconds: tuple[float, ...]
    """Of each round."""

    tokens: int
    operations: float


@dataclass(frozen=True)
class Result:
    """What one way of one case came to."""

    strategy: str
    questions: int
    """Of the page."""

    way: Way
    seconds: float
    """Median of the rounds: forward, backward, clip and AdamW over all questions of the page."""

    fastest_seconds: float
    slowest_seconds: float
    questions_per_second: float
    images_per_second: float
    """Pages all of whose questions are done."""

    tokens_per_second: float
    """Of the examples, shared ones counted once for each."""

    operations_per_second: float
    """Useful ones."""

    matrix_share: float
    """`operations_per_second` of this machine's matrix speed."""

    peak_bytes: int
    """Of a step, above weights and optimizer state."""

    speed_ratio: float
    """To the recipe's way, same strategy and questions."""

    memory_ratio: float
    """To the recipe's way, same strategy and questions."""


@dataclass(frozen=True)
class Machine:
    """What the numbers were taken on."""

    name: str
    threads: int
    matrix_speed: float
    """Operations a second of a large float32 matrix product, best of several."""


def run_bench(
    size: str,
    rounds: int,
    strategies: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    console: Console,
) -> list[Result]:
    """Measure our training step beside the recipe's, and print what came out.

    Args:
        size: a name of `page.SIZES`.
        rounds: steps of each way, in turn; their median counts.
        strategies: of `STRATEGIES`.
        threads: of this machine; none: as torch chooses.
        as_json: print JSON instead of tables.
        console: to print on.

    Raises:
        ConfigError: a size or strategy that there is not.
    """
    forward = forward_operations(find_size(size))
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise ConfigError(
                f"bench: no strategy {strategy!r}; choose from {', '.join(STRATEGIES)}"
            )
    if threads:
        torch.set_num_threads(threads)
    speeds = [matrix_speed()]
    measured: list[tuple[Case, Timed, int]] = []
    for strategy in strategies:
        for questions in QUESTIONS:
            ways = [way for way in SHOWN if questions > 1 or way != "separate"]
            cases = [Case(size, strategy, questions, way) for way in ways]
            with console.status(f"{strategy}, {questions} a page"):
                peaks = [peak_of(case) for case in cases]
                timed = time_in_turn(cases, rounds)
            measured += zip(cases, timed, peaks, strict=True)
            speeds.append(matrix_speed())
    machine = Machine(machine_name(), torch.get_num_threads(), max(speeds))
    results = make_results(measured, machine.matrix_speed)
    if as_json:
        console.out(results_to_json(size, machine, forward, results), highlight=False)
    else:
        print_results(console, size, machine, forward, results)
    return results


def forward_operations(size: BenchSize, text_tokens: int = 45) -> Operations:
    """Count the products of a forward pass over one page and one question, a label everywhere.

    Where fewer positions have labels, the head's part shrinks alike for any model.
    """
    page = LetterProcessor(size).shape(*size.page)
    tokens = page.tokens + text_tokens
    row = count_groups(
        [(tokens, [])],
        np.array([page.tokens]),
        np.array([page.crops]),
        examples=1,
        targets=tokens,
    )
    return useful_operations(costs_of(size, "full", goes_back=False), row)


def time_in_turn(cases: Sequence[Case], rounds: int) -> list[Timed]:
    """Let every case take one step a round, so that all meet the same weather."""
    with TemporaryDirectory() as folder:
        sides = [Contender(case, Path(folder)) for case in cases]
        seconds: list[list[float]] = [[] for _ in sides]
        for _ in range(rounds):
            for side, taken in zip(sides, seconds, strict=True):
                taken.append(time_step(side))
    return [
        Timed(tuple(taken), side.tokens, side.operations)
        for side, taken in zip(sides, seconds, strict=True)
    ]


def time_step(side: Contender) -> float:
    """Take a step; returns its seconds."""
    gc.collect()
    start = time.perf_counter()
    side.step()
    return time.perf_counter() - start


def make_results(measured: Sequence[tuple[Case, Timed, int]], matrix_speed: float) -> list[Result]:
    """Turn seconds into rates, beside the recipe's way with the same strategy and questions."""
    recipe = {
        (case.strategy, case.questions): (median(timed.seconds), peak)
        for case, timed, peak in measured
        if case.way == "recipe"
    }
    results = []
    for case, timed, peak in measured:
        seconds = median(timed.seconds)
        recipe_seconds, recipe_peak = recipe[case.strategy, case.questions]
        results.append(
            Result(
                strategy=case.strategy,
                questions=case.questions,
                way=case.way,
                seconds=seconds,
                fastest_seconds=min(timed.seconds),
                slowest_seconds=max(timed.seconds),
                questions_per_second=case.questions / seconds,
                images_per_second=1 / seconds,
                tokens_per_second=timed.tokens / seconds,
                operations_per_second=timed.operations / seconds,
                matrix_share=timed.operations / seconds / matrix_speed,
                peak_bytes=peak,
                speed_ratio=recipe_seconds / seconds,
                memory_ratio=peak / recipe_peak,
            )
        )
    return results


def peak_of(case: Case) -> int:
    """Take steps of a case in a fresh process; returns bytes above what stands between steps."""
    return in_new_process(_step_peak, case, torch.get_num_threads())


def _step_peak(case: Case, threads: int) -> int:
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        side = Contender(case, Path(folder))
    side.step()  # the first one also brings in what libraries load when they are first used
    return step_peak(side)


def hand_back_free_memory() -> None:
    """Give the kernel what glibc kept, so that what a process holds is what it uses."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def step_peak(side: Contender) -> int:
    """Take a step; returns the most bytes that it held above what stood before it."""
    gc.collect()
    if side.engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.step()
        return torch.cuda.max_memory_allocated() - before
    hand_back_free_memory()
    before = resident_bytes("VmRSS")
    reset_most_resident()
    side.step()
    return resident_bytes("VmHWM") - before


def print_results(
    console: Console,
    size: str,
    machine: Machine,
    forward: Operations,
    results: Sequence[Result],
) -> None:
    """Print one table for each strategy."""
    console.print(
        f"{machine.name}, {machine.threads} threads, float32; "
        f"matrix speed {machine.matrix_speed / 1e9:,.0f} GFLOP/s\n"
        f"size {size}; decoder : tower : head = 1 : {forward.tower / forward.decoder:.3f} : "
        f"{forward.head / forward.decoder:.3f}",
        highlight=False,
    )
    for strategy, some in groupby(results, key=lambda result: result.strategy):
        console.print(_table(strategy, list(some)))


def _table(strategy: str, results: Sequence[Result]) -> Table:
    # 80 columns wide at most: what is not a terminal has no more, and loses the rest unseen.
    table = Table(title=strategy, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in ("asked\na page", "way"):
        table.add_column(name, no_wrap=True)
    rates = "s a\nstep", "asked\n/s", "images\n/s", "tokens\n/s"
    for name in (*rates, "matrix", "peak\nGB", "speed", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in results:
        table.add_row(
            str(one.questions),
            SHOWN[one.way],
            f"{one.seconds:.2f}",
            f"{one.questions_per_second:.3f}",
            f"{one.images_per_second:.3f}",
            f"{one.tokens_per_second:,.0f}",
            f"{one.matrix_share:.0%}",
            f"{one.peak_bytes / 1e9:.2f}",
            f"{one.speed_ratio:.2f}x",
            f"{one.memory_ratio:.0%}",
            end_section=one.way == "recompute",
        )
    return table


def results_to_json(
    size: str, machine: Machine, forward: Operations, results: Sequence[Result]
) -> str:
    """Write everything that `print_results` shows, and more, for machines."""
    tree = {
        "size": size,
        "machine": asdict(machine),
        "forward_operations": asdict(forward),
        "results": [asdict(result) for result in results],
    }
    return json.dumps(tree, indent=1)
