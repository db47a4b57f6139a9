"""Many things of which none is kept -> a sequence that makes each when it is asked for."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

_Item = TypeVar("_Item", covariant=True)


class Listed(Sequence[_Item]):
    """Base of such a sequence."""

    @abstractmethod
    def at(self, index: int) -> _Item:
        """Make one, counted from the first."""

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | list[_Item]:
        """Make one, or several."""
        if isinstance(index, slice):
            return [self.at(one) for one in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])


class EndToEnd(Listed[_Item]):
    """Several sequences, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[_Item]]) -> None:
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[_Item]:
        return chain.from_iterable(self.parts)

    def place(self, index: int) -> tuple[int, int]:
        """Say in which of them a thing is, and its place there."""
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

    def at(self, index: int) -> _Item:
        """Make one of the part that it is in."""
        part, within = self.place(index)
        return self.parts[part][within]


@dataclass(frozen=True)
class Picked(Listed[_Item]):
    """Some things of a sequence, by their places in it."""

    whole: Sequence[_Item]
    places: Sequence[int] | NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def at(self, index: int) -> _Item:
        """Make the thing at a place."""
        return self.whole[int(self.places[index])]
