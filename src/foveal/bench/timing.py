"""A size and strategies -> what both ways do a second, in one process, and what they hold."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from foveal.bench.random_page import find_size, make_model
from foveal.bench.result import Machine, Result, print_results, results_to_json
from foveal.bench.side import Case, Side, Way
from foveal.data.parallel import in_new_process
from foveal.errors import ConfigError
from foveal.machine import hand_back_free_memory
from foveal.plan.machines.resident import reset_most_resident, resident_bytes
from foveal.plan.machines.this_machine import machine_name, matrix_speed
from foveal.plan.model_costs.arithmetic import proportions

STRATEGIES = ("full", "frozen_vision", "lora")
QUESTIONS = (1, 4)
"""A page's questions: no sharing possible, and about what a page of DocVQA has."""

WAYS: tuple[Way, ...] = ("recipe", "separate", "shared", "light", "recompute")


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
    shape = proportions(make_model(find_size(size)).config)
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
            ways = [way for way in WAYS if questions > 1 or way != "separate"]
            cases = [Case(size, strategy, questions, way) for way in ways]
            with console.status(f"{strategy}, {questions} a page"):
                peaks = [peak_of(case) for case in cases]
                timed = time_in_turn(cases, rounds)
            measured += zip(cases, timed, peaks, strict=True)
            speeds.append(matrix_speed())
    machine = Machine(machine_name(), torch.get_num_threads(), max(speeds))
    results = make_results(measured, machine.matrix_speed)
    if as_json:
        console.out(results_to_json(size, machine, shape, results), highlight=False)
    else:
        print_results(console, size, machine, shape, results)
    return results


@dataclass(frozen=True)
class Timed:
    """What the steps of one case took."""

    seconds: tuple[float, ...]
    """Of each round."""

    tokens: int
    operations: float


def time_in_turn(cases: Sequence[Case], rounds: int) -> list[Timed]:
    """Let every case take one step a round, so that all meet the same weather."""
    with TemporaryDirectory() as folder:
        sides = [Side(case, Path(folder)) for case in cases]
        seconds: list[list[float]] = [[] for _ in sides]
        for _ in range(rounds):
            for side, taken in zip(sides, seconds, strict=True):
                taken.append(time_step(side))
    return [
        Timed(tuple(taken), side.tokens, side.operations)
        for side, taken in zip(sides, seconds, strict=True)
    ]


def time_step(side: Side) -> float:
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
        side = Side(case, Path(folder))
    side.step()  # the first one also brings in what libraries load when they are first used
    return step_peak(side)


def step_peak(side: Side) -> int:
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
