"""A question -> its worst row and some typical ones, run for real in a process of their own."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from foveal.config import Recipe
from foveal.data.batch import build_batch
from foveal.data.dataset import Dataset
from foveal.data.parallel import in_new_process
from foveal.data.row_planning.groups import Row
from foveal.plan.epoch import RowCounts
from foveal.plan.estimate import estimate_rows
from foveal.plan.hardware import Efficiency, Hardware
from foveal.plan.memory import Memory, slack_factor
from foveal.plan.question import ModelLoader, Question
from foveal.plan.seconds import Seconds
from foveal.plan.setup import Setup
from foveal.plan.this_machine import (
    bring_in_libraries,
    held_bytes,
    measure_crop_seconds,
    reset_most_resident,
    resident_bytes,
)
from foveal.train.engines.one_process import Engine
from foveal.train.learner import make_learner
from foveal.train.objective import objective_of
from foveal.train.recompute import Recompute
from foveal.train.step import backward_rows, train_step

REPEATS = 3
TOLD_APART = 0.02
"""Share of a pass below which the optimizer's time cannot be told from a clock's noise."""

TYPICAL = (0.5, 0.25)
"""Places of typical rows among all, by their tokens."""


@dataclass(frozen=True)
class Measured:
    """What some rows took."""

    base_bytes: int
    """Of the process with its libraries, before there was a model."""

    peak_bytes: int
    """At most, over optimizer steps of the worst row; `base_bytes` included."""

    step_seconds: tuple[float, ...]
    """Of each row: an optimizer step over it alone, the fastest of some."""

    pass_seconds: tuple[float, ...]
    """Of each row: forward and backward alone."""


@dataclass(frozen=True)
class MeasuredRow:
    """Estimated beside measured."""

    rows: tuple[RowCounts, ...]
    """The worst first."""

    memory: Memory
    seconds: tuple[Seconds, ...]
    measured: Measured
    efficiency: Efficiency
    """That explains the measured times."""


def measure(
    question: Question,
    setup: Setup,
    hardware: Hardware,
    load_model: ModelLoader,
) -> MeasuredRow:
    """Run rows for real and set them beside their estimates.

    Args:
        question: whose data and model.
        setup: of one process.
        hardware: this machine, measured.
        load_model: recipe -> model with weights; can be pickled.
    """
    rows = choose_rows(question, setup)
    most_rows = question.epoch(1).most_rows
    measured = in_new_process(
        run_rows,
        question.recipe,
        setup.recompute,
        rows,
        most_rows > 1,
        load_model,
        torch.get_num_threads(),
        question.dataset,
        question.processor,
    )
    counts = tuple(question.count(row) for row in rows)
    here = replace(hardware, base_bytes=measured.base_bytes)
    memory, seconds = estimate_rows(setup, counts, most_rows, here)
    found = explain_times(seconds, measured, hardware.reached, setup.strategy)
    if factor := slack_factor(setup):
        without = memory.total_bytes - memory.slack_bytes
        holes = (measured.peak_bytes - without) / max(memory.passing_bytes, 1)
        found = replace(found, memory_slack=max(0.0, holes) / factor)
    return MeasuredRow(counts, memory, seconds, measured, found)


def choose_rows(question: Question, setup: Setup) -> tuple[Row, ...]:
    """Take an epoch's worst row for memory, and typical ones by length."""
    plan = question.planner(1)
    steps = (plan.step(index) for index in range(plan.steps_per_epoch))
    rows = [row for step in steps for rank in step.ranks for row in rank if row.groups]
    costs = setup.costs
    worst = max(rows, key=lambda row: costs.weigh(question.count(row)))
    ordered = sorted(rows, key=lambda row: row.tokens(plan.sizes))
    return (worst, *(ordered[int(place * (len(ordered) - 1))] for place in TYPICAL))


def run_rows(
    recipe: Recipe,
    recompute: Recompute,
    rows: Sequence[Row],
    accumulate: bool,
    load_model: ModelLoader,
    threads: int,
    dataset: Dataset,
    processor: Any,
) -> Measured:
    """Take optimizer steps over each row; for a fresh process.

    Args:
        recipe: of the run.
        recompute: what is made again.
        rows: the worst first.
        accumulate: whether a step has several, so that gradients are there when one begins.
        load_model: recipe -> model with weights.
        threads: of the processor.
        dataset: that the rows are of.
        processor: of the model.
    """
    train = recipe.train
    torch.set_num_threads(threads)
    torch.manual_seed(train.seed)
    engine = Engine(recipe.precision)
    bring_in_libraries()
    base = held_bytes(engine.device)
    loaded = load_model(recipe)
    learner = make_learner(engine, loaded, recipe.strategy, train, recipe.lora, recompute)
    optimizer = learner.optimizer
    loss = learner.loss.train()
    objective = objective_of(recipe)
    reference = np.zeros(len(dataset.examples), np.float32)  # costs what any other would
    batches = [build_batch(row, dataset, processor, reference=reference) for row in rows]

    def step(place: int, times: int = 1) -> float:
        gc.collect()
        start = time.perf_counter()
        same, clip = [batches[place]] * times, train.gradient_clip
        train_step(engine, loss, optimizer, same, clip, objective=objective)
        _wait(engine.device)
        return time.perf_counter() - start

    def passes(place: int) -> float:
        gc.collect()
        start = time.perf_counter()
        backward_rows(engine, loss, [batches[place]], objective)
        _wait(engine.device)
        taken = time.perf_counter() - start
        optimizer.zero_grad(set_to_none=True)
        return taken

    step(0)  # the optimizer makes its moments
    _forget_peak(engine.device)
    for _ in range(2):
        step(0, times=2 if accumulate else 1)
    peak = _most_held(engine.device, base)
    # The rows take turns: what disturbs the machine for a while disturbs all of them alike.
    places = range(len(batches))
    steps = [[step(place) for place in places] for _ in range(REPEATS)]
    alone = [[passes(place) for place in places] for _ in range(REPEATS)]
    return Measured(base, peak, _fastest(steps), _fastest(alone))


def explain_times(
    estimated: Sequence[Seconds], measured: Measured, efficiency: Efficiency, strategy: str
) -> Efficiency:
    """Find the shares of the machine's speed that explain what rows took."""
    busy = sum(one.total - one.optimizer for one in estimated)
    faster = busy / sum(measured.pass_seconds)
    rest = [
        step - alone
        for step, alone in zip(measured.step_seconds, measured.pass_seconds, strict=True)
    ]
    optimizer = sum(one.optimizer for one in estimated)
    told = sum(rest) > 0 and optimizer > TOLD_APART * busy
    quicker = optimizer / sum(rest) if told else 1.0
    return Efficiency(
        matrix=efficiency.matrix * faster,
        attention=efficiency.attention * faster,
        bandwidth=efficiency.bandwidth * quicker,
        link=efficiency.link,
        pass_seconds=0.0,
        crop_seconds=measure_crop_seconds(),
        source=f"measured here by --measure, {strategy}",
        memory_slack=efficiency.memory_slack,
        moved=efficiency.moved * quicker / faster,
    )


def _fastest(turns: list[list[float]]) -> tuple[float, ...]:
    return tuple(min(taken) for taken in zip(*turns, strict=True))


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_most_resident()


def _most_held(device: torch.device, base: int) -> int:
    if device.type == "cuda":
        return base + torch.cuda.max_memory_reserved(device)
    return resident_bytes("VmHWM")


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
