"""A question and a machine -> every sensible setup, which fit, which is fastest, what to change."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from foveal.adapt.strategy import STRATEGIES
from foveal.plan.estimate import Estimate, estimate
from foveal.plan.machines.hardware import Hardware
from foveal.plan.question import Question
from foveal.plan.seconds import Efficiency
from foveal.plan.setup import ENGINES, Setup
from foveal.train.recompute import Recompute

RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
"""The cheapest first."""

MOST_GPUS = 64


@dataclass(frozen=True)
class Machines:
    """What is to be had, and for how much."""

    hardware: Hardware
    efficiency: Efficiency
    gpus: int
    nodes: int
    price_per_hour: float | None = None


def decide(question: Question, machines: Machines) -> Estimate:
    """Estimate the recipe as a run would decide: no more is made again than must be."""
    setup = question.setup(machines.hardware, machines.gpus, machines.nodes)
    if question.recipe.train.recompute == "auto":
        for recompute in RECOMPUTE[:-1]:
            found = _estimate(question, replace(setup, recompute=recompute), machines)
            if found.fits:
                return found
    return _estimate(question, setup, machines)


def compare(question: Question, machines: Machines) -> list[Estimate]:
    """Estimate every sensible setup: those that fit first, the fastest of them first."""
    setup = question.setup(machines.hardware, machines.gpus, machines.nodes)
    found = [
        _estimate(question, one, machines) for one in _setups(question, setup, machines.hardware)
    ]
    return sorted(found, key=lambda one: (not one.fits, -one.examples_per_second))


def _setups(question: Question, setup: Setup, hardware: Hardware) -> Iterator[Setup]:
    engines = [engine for engine in ENGINES if (engine == "single") == (setup.world_size == 1)]
    for strategy in STRATEGIES:
        learnt = question.with_strategy(setup, strategy, hardware)
        for recompute in RECOMPUTE:
            for engine in engines:
                yield replace(learnt, recompute=recompute, engine=engine)


def _estimate(
    question: Question, setup: Setup, machines: Machines, tokens_per_pass: int | None = None
) -> Estimate:
    return estimate(
        setup,
        question.epoch(setup.world_size, tokens_per_pass),
        machines.hardware,
        machines.efficiency,
        workers=question.recipe.data.workers,
        steps=question.steps,
        reading=question.reading(setup.world_size, tokens_per_pass),
        price_per_hour=machines.price_per_hour,
    )


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
        again = _estimate(question, replace(setup, recompute=recompute), machines)
        if again.fits:
            yield f"train.recompute={recompute} ({_gigabytes(again)})"
            break
    setup = replace(setup, recompute="blocks")
    for engine in ENGINES[2:] if setup.world_size > 1 else ():
        other = _estimate(question, replace(setup, engine=engine), machines)
        if engine != setup.engine and other.fits:
            yield f"engine={engine} ({_gigabytes(other)})"
    budget = question.recipe.train.tokens_per_pass
    longest = int(question.dataset.sizes.tokens.max())
    smaller = budget // 2
    while smaller > longest // 2:
        tried = max(smaller, longest)
        less = _estimate(question, replace(setup, recompute="blocks"), machines, tried)
        if less.fits:
            yield f"token budget {budget:,} -> {tried:,} ({_gigabytes(less)})"
            break
        smaller //= 2
    for strategy in STRATEGIES:
        if strategy in ("full", setup.strategy):
            continue
        other = _estimate(
            question,
            replace(question.with_strategy(setup, strategy, machines.hardware), recompute="blocks"),
            machines,
        )
        if other.fits:
            yield f"strategy={strategy} ({_gigabytes(other)})"


def _other_machines(question: Question, machines: Machines, now: Estimate) -> Iterator[str]:
    gpus = 2 * now.setup.gpus
    while gpus * now.setup.nodes <= MOST_GPUS:
        setup = replace(now.setup, gpus=gpus, engine="fsdp2", recompute="blocks")
        more = _estimate(question, setup, machines)
        if more.fits:
            yield f"{gpus} GPUs with engine=fsdp2 ({_gigabytes(more)} each)"
            return
        gpus *= 2


def _gigabytes(one: Estimate) -> str:
    return f"{one.memory.total_bytes / 1e9:.1f} GB"
