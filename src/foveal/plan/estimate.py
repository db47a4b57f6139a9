"""A setup, an epoch and a machine -> what a run needs, takes and costs, in one answer (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foveal.plan.epoch import Epoch, RowCounts
from foveal.plan.machines.hardware import Hardware
from foveal.plan.memory import Memory, estimate_memory
from foveal.plan.seconds import Efficiency, Seconds, rank_seconds, reading_seconds, step_seconds
from foveal.plan.setup import Setup

SLACK = 0.05
"""Share of the device's memory that an allocator cannot use, for pieces that fit nowhere: an
assumption for steps of near-equal size; lengths that change much need more (docs/plan.md)."""


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
    def room_bytes(self) -> float:
        """Memory that may be used."""
        return self.hardware.memory_bytes * (1 - SLACK)

    @property
    def fits(self) -> bool:
        """Whether the worst row does."""
        return self.memory.total_bytes <= self.room_bytes


def estimate(
    setup: Setup,
    epoch: Epoch,
    hardware: Hardware,
    efficiency: Efficiency,
    *,
    workers: int,
    steps: int,
    reading: Epoch | None = None,
    price_per_hour: float | None = None,
) -> Estimate:
    """Estimate a run.

    Args:
        setup: how it is set up.
        epoch: planned for the setup's world size.
        hardware: of each process.
        efficiency: what share of the hardware's figures is reached.
        workers: that open pictures, of one process.
        steps: of the whole run.
        reading: steps whose rows are read once before the first; none: nothing is.
        price_per_hour: of one accelerator.
    """
    worst = max(epoch.rows, key=setup.costs.weigh)
    memory = estimate_memory(
        setup, worst, epoch.most_rows, workers, hardware.base_bytes, efficiency.memory_slack
    )
    seconds = step_seconds(setup, epoch, hardware, efficiency, workers)
    read = None
    if reading:
        taken = reading_seconds(setup, reading, hardware, efficiency, workers)
        read = ReferenceReading(len(reading.rows), reading.total.tokens, taken)
    hours = (seconds.total * steps + (read.seconds if read else 0.0)) / 3600
    planned = len(epoch.steps) * seconds.total
    return Estimate(
        setup,
        hardware,
        worst,
        memory,
        seconds,
        epoch.total.examples / planned,
        epoch.total.images / planned,
        steps,
        read,
        hours,
        None if price_per_hour is None else hours * setup.world_size * price_per_hour,
    )


def estimate_rows(
    setup: Setup,
    rows: Sequence[RowCounts],
    rows_behind_step: int,
    hardware: Hardware,
    efficiency: Efficiency,
) -> tuple[Memory, tuple[Seconds, ...]]:
    """Estimate memory at the first row, and the time of a step over each row alone.

    Pictures are taken to be open already.
    """
    memory = estimate_memory(
        setup, rows[0], rows_behind_step, 0, hardware.base_bytes, efficiency.memory_slack
    )
    opened = replace(efficiency, crop_seconds=0.0)
    return memory, tuple(rank_seconds(setup, [row], hardware, opened, 1) for row in rows)
