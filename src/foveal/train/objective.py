"""What a model makes of a row -> what is to be made small, and what is worth knowing of it."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from foveal.data.forward_inputs import Batch


class Objective(Protocol):
    """What a run makes small: a function of what `RowLoss` returns for a row."""

    measures: tuple[str, ...]
    """Names of what `measure` sums."""

    def total(self, output: Tensor, batch: Batch) -> Tensor:
        """Sum the loss of a row, (), float32; a step divides by `Batch.count` over all rows."""
        ...

    def measure(self, output: Tensor, batch: Batch) -> list[float]:
        """Sum over the row what a step says besides, one number a name."""
        ...


class Answers:
    """Every answer is learnt: the row's own loss."""

    measures: tuple[str, ...] = ()

    def total(self, output: Tensor, batch: Batch) -> Tensor:
        """Take the row's loss as it is."""
        return output

    def measure(self, output: Tensor, batch: Batch) -> list[float]:
        """Nothing more is known."""
        return []


ANSWERS = Answers()


def means(names: tuple[str, ...], sums: list[float], count: float) -> Mapping[str, float]:
    """Divide what `measure` summed."""
    return {name: total / count for name, total in zip(names, sums, strict=True)} if count else {}
