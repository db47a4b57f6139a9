"""Plan -> the batches of one rank, from any step on, opened by workers ahead of the model."""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from foveal.data.batch import build_batch
from foveal.data.dataset import Dataset
from foveal.data.forward_inputs import Batch
from foveal.data.parallel import deaf_to_stops
from foveal.data.row_planning.groups import Row
from foveal.data.rows import RowPlanner
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import StoreError


@dataclass(frozen=True)
class RowBatches(TorchDataset[Batch]):
    """What a worker does: a row becomes a batch."""

    dataset: Dataset
    processor: TurnProcessor
    weighting: str
    reference: NDArray[np.float32] | None = None
    """(examples,) Log-probability of each answer before the run, where answers are compared."""

    def __getitem__(self, row: Row) -> Batch:
        """Lay out one row and open its images."""
        return build_batch(row, self.dataset, self.processor, self.weighting, self.reference)


@dataclass(frozen=True)
class StepBatches:
    """The batches of one rank behind one optimizer step."""

    step: int
    batches: Iterator[Batch]


@dataclass(frozen=True)
class StepLoader:
    """Yields the steps of one rank; the plan says what is in each, so none need be replayed."""

    planner: RowPlanner
    batches: RowBatches
    rank: int = 0
    workers: int = 0
    """Processes that open images; 0: none beside this one."""

    pin_memory: bool = False
    """Whether batches are copied to memory that a GPU reads by itself."""

    most_of_all: Callable[[int], int] = int
    """Of a number, finds the largest that any rank has; called by all at once."""

    _planned: dict[int, tuple[Row, ...]] = field(default_factory=dict, init=False)

    def steps(self, start: int, stop: int) -> Generator[StepBatches, None, None]:
        """Yield steps `start` to `stop - 1`; see `some_steps`."""
        return self.some_steps(range(start, stop))

    def some_steps(self, numbers: Sequence[int]) -> Generator[StepBatches, None, None]:
        """Yield steps by their numbers; use up the batches of one before the next.

        Whoever leaves early closes it, or the workers would outlive the error: they are deaf to
        requests to stop, also to those of the end of the program.
        """
        self._planned.clear()
        rows = (row for step in numbers for row in self._rows(step))
        with deaf_to_stops(), warnings.catch_warnings():
            # More workers than processors: they also wait for disks, and somebody asked for them.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                self.batches,
                sampler=rows,
                batch_size=None,
                num_workers=self.workers,
                prefetch_factor=4 if self.workers else None,
                worker_init_fn=_use_one_thread,
                pin_memory=self.pin_memory,
            )
            others = set(active_children())
            stream = iter(loader)
            workers = set(active_children()) - others
        try:
            for step in numbers:
                own = len(self._rows(step))
                self._planned.pop(step)
                passes = self.most_of_all(own) if self.planner.is_agreed_upon else own
                batches = (_next_batch(stream) for _ in range(own))
                idle = (self.batches[Row()] for _ in range(passes - own))
                yield StepBatches(step, chain(batches, idle))
        finally:
            _end(stream, workers)

    def examples_until(self, step: int) -> int:
        """Count the examples that the first `step` steps were given, on all ranks."""
        passes, place = divmod(step, self.planner.steps_per_epoch)
        one_pass = self.examples_in_a_pass
        return passes * one_pass + min(place * self.planner.examples_per_step, one_pass)

    @property
    def examples_in_a_pass(self) -> int:
        """Count the examples that one pass shows, as often as the files' weights say."""
        sizes = self.planner.sizes
        return sum(file.an_epoch for file in sizes.shown) or sizes.num_sets

    def _rows(self, step: int) -> tuple[Row, ...]:
        if step not in self._planned:  # workers are given rows before their step has come
            self._planned[step] = self.planner.rows_of(step, self.rank)
        return self._planned[step]


def _next_batch(stream: Iterator[Batch]) -> Batch:
    try:
        return next(stream)
    except StoreError as error:  # a worker's comes behind its traceback
        *_, last = str(error).strip().splitlines()
        raise StoreError(last.removeprefix(f"{StoreError.__module__}.StoreError: ")) from None


def _end(stream: Any, workers: Iterable[BaseProcess]) -> None:
    if workers:
        stream._shutdown_workers()  # asks them, and waits some seconds
    for one in workers:
        if one.is_alive():
            one.kill()


def _use_one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
