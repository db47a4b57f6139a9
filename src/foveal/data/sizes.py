"""What planning knows of every example: how long it is, how its prompt begins (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from foveal.data.epochs import Shown


@dataclass(frozen=True)
class Ragged:
    """Many short lists of whole numbers, end to end."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """(lists + 1,) Where each list starts, and where the last one ends."""

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> "Ragged":
        """Lay lists end to end."""
        kept = list(lists)
        offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        return cls(np.fromiter(chain.from_iterable(kept), np.int32, offsets[-1]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: Sequence[int]) -> list[list[int]]:
        """Read the lists at `indices`."""
        starts = self.offsets[np.asarray(indices, np.int64)].tolist()
        ends = self.offsets[np.asarray(indices, np.int64) + 1].tolist()
        return [self.values[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Sizes:
    """What planning needs to know of every example."""

    tokens: NDArray[np.int32]
    """(examples,) Whole length, image tokens counted in."""

    prompts: Ragged
    """First turn's prompt: token ids, and -(1 + image number) as the one entry of an image."""

    images: Ragged
    """Image numbers of all turns."""

    image_tokens: NDArray[np.int32]
    """(images,) Tokens that each distinct image costs."""

    image_crops: NDArray[np.int32]
    """(images,) Crops of it that the vision tower sees."""

    shown: tuple[Shown, ...] = ()
    """How often an epoch shows the examples, file by file; empty: each once."""

    sets: NDArray[np.int64] | None = None
    """(sets + 1,) Where each set of answers to one prompt begins, and where the last one ends: they
    never part. What a file shows and what a step holds is counted in sets. None: no example has
    another beside it."""

    @property
    def num_sets(self) -> int:
        """Count what a step is counted in."""
        return len(self.tokens) if self.sets is None else len(self.sets) - 1

    def first_of_sets(self) -> NDArray[np.int64]:
        """Name the first example of each set."""
        return np.arange(len(self.tokens)) if self.sets is None else self.sets[:-1]

    def set_of(self, examples: Sequence[int]) -> list[int]:
        """Number the sets that examples belong to."""
        if self.sets is None:
            return list(examples)
        found: list[int] = (np.searchsorted(self.sets, examples, side="right") - 1).tolist()
        return found

    def is_first(self, example: int) -> bool:
        """Tell whether an example is the first of its set."""
        return self.sets is None or self.sets[self.set_of([example])[0]] == example

    def members(self, sets: NDArray[np.int64]) -> list[tuple[int, ...]]:
        """Name the examples of each of some sets."""
        if self.sets is None:
            return [(one,) for one in sets.tolist()]
        starts, ends = self.sets[:-1][sets].tolist(), self.sets[1:][sets].tolist()
        return [tuple(range(start, end)) for start, end in zip(starts, ends, strict=True)]

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.prompts) == len(self.images):
            raise ValueError(
                f"{len(self.tokens)} lengths, {len(self.prompts)} prompts and "
                f"{len(self.images)} lists of images do not belong together"
            )


def families(prompts: Ragged) -> NDArray[np.int64]:
    """Number the examples so that equal numbers mean: the same up to the last image of the prompt.

    An example whose prompt shows no image has a number of its own.
    """
    entries, owners = image_entries(prompts)
    ends = prompts.offsets[:-1].copy()
    np.maximum.at(ends, owners, entries + 1)
    numbers: dict[bytes | int, int] = {}
    # A dictionary finds by hash and then compares the whole beginning: nothing is guessed.
    beginnings = (
        prompts.values[start:end].tobytes() or example
        for example, (start, end) in enumerate(zip(prompts.offsets, ends, strict=False))
    )
    found = (numbers.setdefault(beginning, len(numbers)) for beginning in beginnings)
    return np.fromiter(found, np.int64, len(prompts))


def image_entries(prompts: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find where images stand in the values, and in which prompt that is."""
    entries = np.flatnonzero(prompts.values < 0)
    return entries, np.searchsorted(prompts.offsets, entries, side="right") - 1


def common_run(prompts: Sequence[list[int]]) -> int:
    """Count the entries that all prompts begin with."""
    first, last = min(prompts), max(prompts)  # in dictionary order all others lie between them
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(last)))
