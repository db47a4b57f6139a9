"""A question and machines -> what a run needs, takes and costs, and what other setups would."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from foveal.adapt.strategy import STRATEGIES
from foveal.plan.epoch import RowCounts
from foveal.plan.hardware import Hardware
from foveal.plan.memory import SLACK, Memory, estimate_memory
from foveal.plan.question import Question
from foveal.plan.seconds import Seconds, rank_seconds, reading_seconds, step_seconds
from foveal.plan.setup import Setup, engines_of
from foveal.train.recompute import Recompute

RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
"""The cheapest first."""

MOST_GPUS = 64


@dataclass(frozen=True)
class Machines:
    """What is to be had, and for how much."""

    hardware: Hardware
    gpus: int
    nodes: int
    price_per_hour: float | None = None


@dataclass(frozen=True)
class ReferenceReading:
    """What is read once before the first step, to compare with. It holds less than a step does."""

    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run needs, takes and costs."""

    setup: Setup
    hardware: Hardware
    worst_row: RowCounts
    memory: Memory
    seconds: Seconds
    examples_per_second: float
    images_per_second: float
    steps: int
    reading: ReferenceReading | None
    """None: a step compares with nothing."""

    hours: float
    """Of the whole run, reading included."""

    price: float | None
    """Of the whole run, in the currency of the price of an hour."""

    @property
    def usable_bytes(self) -> float:
        """Memory that may be used."""
        return self.hardware.memory_bytes * (1 - SLACK)

    @property
    def fits(self) -> bool:
        """Whether the worst row does."""
        return self.memory.total_bytes <= self.usable_bytes


def estimate(
    question: Question, setup: Setup, machines: Machines, tokens_per_pass: int | None = None
) -> Estimate:
    """Estimate a run.

    Args:
        question: whose data and steps.
        setup: how it is set up.
        machines: that it runs on.
        tokens_per_pass: in place of the recipe's.
    """
    hardware, workers = machines.hardware, question.recipe.data.workers
    epoch = question.epoch(setup.world_size, tokens_per_pass)
    worst = max(epoch.rows, key=setup.costs.weigh)
    memory = estimate_memory(
        setup, worst, epoch.most_rows, workers, hardware.base_bytes, hardware.reached.memory_slack
    )
    seconds = step_seconds(setup, epoch, hardware, workers)
    read = None
    if reading := question.reading(setup.world_size, tokens_per_pass):
        taken = reading_seconds(setup, reading, hardware, workers)
        read = ReferenceReading(len(reading.rows), reading.total.tokens, taken)
    hours = (seconds.total * question.steps + (read.seconds if read else 0.0)) / 3600
    planned = len(epoch.steps) * seconds.total
    price = machines.price_per_hour
    return Estimate(
        setup,
        hardware,
        worst,
        memory,
        seconds,
        epoch.total.examples / planned,
        epoch.total.images / planned,
        question.steps,
        read,
        hours,
        None if price is None else hours * setup.world_size * price,
    )


def estimate_rows(
    setup: Setup,
    rows: Sequence[RowCounts],
    rows_behind_step: int,
    hardware: Hardware,
) -> tuple[Memory, tuple[Seconds, ...]]:
    """Estimate memory at the first row, and the time of a step over each row alone.

    Images are taken to be open already.
    """
    memory = estimate_memory(
        setup, rows[0], rows_behind_step, 0, hardware.base_bytes, hardware.reached.memory_slack
    )
    opened = replace(hardware, reached=replace(hardware.reached, crop_seconds=0.0))
    return memory, tuple(rank_seconds(setup, [row], opened, 1) for row in rows)


def decide(question: Question, machines: Machines) -> Estimate:
    """Estimate the recipe as a run would decide: no more is made again than must be."""
    setup = question.setup(machines.hardware, machines.gpus, machines.nodes)
    if question.recipe.train.recompute == "auto":
        for recompute in RECOMPUTE[:-1]:
            found = estimate(question, replace(setup, recompute=recompute), machines)
            if found.fits:
                return found
    return estimate(question, setup, machines)


def compare(question: Question, machines: Machines) -> list[Estimate]:
    """Estimate every sensible setup: those that fit first, the fastest of them first."""
    setup = question.setup(machines.hardware, machines.gpus, machines.nodes)
    setups = _setups(question, setup, machines.hardware)
    found = [estimate(question, one, machines) for one in setups]
    return sorted(found, key=lambda one: (not one.fits, -one.examples_per_second))


def _setups(question: Question, setup: Setup, hardware: Hardware) -> Iterator[Setup]:
    engines = engines_of(setup.optimizer, setup.world_size)
    for strategy in STRATEGIES:
        learnt = question.with_strategy(setup, strategy, hardware)
        for recompute in RECOMPUTE:
            for engine in engines:
                yield replace(learnt, recompute=recompute, engine=engine)


def advise(question: Question, machines: Machines, now: Estimate) -> list[str]:
    """Name single changes after which a run fits, each with its size; empty: it fits already."""
    if now.fits:
        return []
    changes = [*_other_settings(question, machines, now), *_other_machines(question, machines, now)]
    return changes or [
        "no single change is enough; take the first line of --compare that fits, or a larger GPU"
    ]


def _other_settings(question: Question, machines: Machines, now: Estimate) -> Iterator[str]:
    setup = now.setup
    for recompute in RECOMPUTE[RECOMPUTE.index(setup.recompute) + 1 :]:
        again = estimate(question, replace(setup, recompute=recompute), machines)
        if again.fits:
            yield f"train.recompute={recompute} ({_gigabytes(again)})"
            break
    for engine in engines_of(setup.optimizer, setup.world_size):
        other = estimate(question, replace(setup, engine=engine), machines)
        if engine not in (setup.engine, "ddp") and other.fits:
            yield f"engine={engine} ({_gigabytes(other)})"
    budget = question.recipe.train.tokens_per_pass
    longest = int(question.dataset.sizes.tokens.max())
    smaller = budget // 2
    while smaller > longest // 2:
        tried = max(smaller, longest)
        less = estimate(question, setup, machines, tried)
        if less.fits:
            yield f"token budget {budget:,} -> {tried:,} ({_gigabytes(less)})"
            break
        smaller //= 2
    for strategy in STRATEGIES:
        if strategy not in ("full", setup.strategy):
            learnt = question.with_strategy(setup, strategy, machines.hardware)
            other = estimate(question, learnt, machines)
            if other.fits:
                yield f"strategy={strategy} ({_gigabytes(other)})"


def _other_machines(question: Question, machines: Machines, now: Estimate) -> Iterator[str]:
    gpus = 2 * now.setup.gpus
    while "fsdp2" in engines_of(now.setup.optimizer, gpus) and gpus * now.setup.nodes <= MOST_GPUS:
        more = estimate(question, replace(now.setup, gpus=gpus, engine="fsdp2"), machines)
        if more.fits:
            yield f"{gpus} GPUs with engine=fsdp2 ({_gigabytes(more)} each)"
            return
        gpus *= 2


def _gigabytes(one: Estimate) -> str:
    return f"{one.memory.total_bytes / 1e9:.1f} GB"
