"""Many things of which none is kept -> a sequence that makes each when it is asked for."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar, overload

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


def place_within(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Say in which of several sequences, which lie end to end, a thing is, and its place there."""
    part = bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)
