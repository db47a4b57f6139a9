"""What is known of every example, which share a prefix or a pass, and what that costs (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import ColumnTable, Ragged
from foveal.data.row_planning.epochs import Shown


class Lists(Protocol):
    """Many short lists of whole numbers, wherever they are."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> list[list[int]]:
        """Read the lists at `indices`."""
        ...


@dataclass(frozen=True)
class MeasuredExamples(ColumnTable):
    """What hangs on the sizes of images. Of beginnings of prompts it says which are alike."""

    tokens: NDArray[np.int32]
    """(examples,) Whole length, image tokens counted in."""

    images: Ragged
    """Image numbers of all turns."""

    image_tokens: NDArray[np.int32]
    """(images,) Tokens that each distinct image costs."""

    image_crops: NDArray[np.int32]
    """(images,) Crops of it that the vision tower sees."""

    prefix_groups: NDArray[np.int32]
    """(examples,) Equal numbers mean: the same up to the last image of the prompt. An example whose
    prompt shows no image has a number of its own."""

    extra_tokens: NDArray[np.int32]
    """(examples,) Tokens that the images of the prompt add to their entries."""

    crops: NDArray[np.int32]
    """(examples,) Crops of the images of the prompt."""

    later_crops: NDArray[np.int32]
    """(examples,) Crops of the images of later turns."""

    beginning_tokens: NDArray[np.int32]
    """(examples,) Up to the last image of the prompt: what a whole prefix group shares at least."""


@dataclass(frozen=True)
class Sizes(MeasuredExamples):
    """What planning needs to know of every example."""

    prompts: Lists
    """First turn's prompt: token ids, and -(1 + image number) as the one entry of an image."""

    shown: tuple[Shown, ...] = ()
    """How often an epoch shows the examples, file by file; empty: each once."""

    folder: Path | None = None
    """Where all processes keep what is worked out of this; none: each for itself."""

    sets: NDArray[np.int64] | None = None
    """(sets + 1,) Where each set of answers to one prompt begins, and where the last one ends: they
    never part. What a file shows and what a step holds is counted in sets. None: no example has
    another beside it."""

    @property
    def num_sets(self) -> int:
        """Count what a step is counted in."""
        return len(self.tokens) if self.sets is None else len(self.sets) - 1

    @property
    def firsts(self) -> NDArray[np.int64] | slice:
        """The first example of each set, to take out of a column."""
        return slice(None) if self.sets is None else self.sets[:-1]

    def counts(self, sets: NDArray[np.int32]) -> NDArray[np.int64]:
        """Count the examples of each of some sets."""
        if self.sets is None:
            return np.ones(len(sets), np.int64)
        return self.sets[sets + 1] - self.sets[sets]

    def members(self, sets: NDArray[np.int32]) -> list[tuple[int, ...]]:
        """Name the examples of each of some sets."""
        if self.sets is None:
            return [(one,) for one in sets.tolist()]
        starts, ends = self.sets[sets].tolist(), self.sets[sets + 1].tolist()
        return [tuple(range(start, end)) for start, end in zip(starts, ends, strict=True)]

    def set_of(self, examples: Sequence[int]) -> list[int]:
        """Number the sets that examples belong to."""
        if self.sets is None:
            return list(examples)
        found: list[int] = (np.searchsorted(self.sets, examples, side="right") - 1).tolist()
        return found

    def num_sets_in(self, examples: Sequence[int]) -> int:
        """Count the sets that some examples are all of, as often as they are there."""
        return len(examples) if self.sets is None else sum(map(self.is_first, examples))

    def is_first(self, example: int) -> bool:
        """Tell whether an example is the first of its set."""
        return self.sets is None or bool(self.sets[self.set_of([example])[0]] == example)

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.prompts) == len(self.images):
            raise ValueError(
                f"{len(self.tokens)} lengths, {len(self.prompts)} prompts and "
                f"{len(self.images)} lists of images do not belong together"
            )


def common_run(prompts: Sequence[list[int]]) -> int:
    """Count the entries that all prompts begin with."""
    first, last = min(prompts), max(prompts)  # in dictionary order all others lie between them
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(last)))


@dataclass(frozen=True)
class Group:
    """One prefix and the branches that see it; a single example is all prefix."""

    examples: tuple[int, ...]
    prefix_tokens: int

    def branch_tokens(self, sizes: Sizes) -> list[int]:
        """Count what each example adds to the prefix."""
        return [int(sizes.tokens[example]) - self.prefix_tokens for example in self.examples]

    def tokens(self, sizes: Sizes) -> int:
        """Count the tokens that the model reads: the prefix once, and every branch."""
        return self.prefix_tokens + sum(self.branch_tokens(sizes))


@dataclass(frozen=True)
class Row:
    """One forward pass of one rank; without groups where a rank has nothing left to do."""

    groups: tuple[Group, ...] = ()

    @property
    def examples(self) -> tuple[int, ...]:
        """Examples of all groups."""
        return tuple(example for group in self.groups for example in group.examples)

    def tokens(self, sizes: Sizes) -> int:
        """Count the tokens that the model reads."""
        return sum(group.tokens(sizes) for group in self.groups)

    def images(self, sizes: Sizes) -> set[int]:
        """Name the images that the tower encodes, each once."""
        return set(chain.from_iterable(sizes.images.take(self.examples)))


@dataclass(frozen=True)
class Step:
    """The rows of every rank behind one optimizer step: the same number for each rank."""

    ranks: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class Costs:
    """What work costs, in decoder tokens."""

    pair: float = 0.0
    """A token that looks at a token."""

    crop: float = 0.0
    """A crop through the vision tower; of towers that take patches one by one, a patch."""

    def text(self, tokens: Any, seen: Any = 0) -> Any:
        """Price tokens that see each other causally, and all `seen` tokens before them.

        Numbers, or arrays of them.
        """
        return tokens + self.pair * tokens * (seen + (tokens + 1) / 2)

    def row(self, row: Row, sizes: Sizes) -> float:
        """Price one forward pass."""
        price = self.crop * int(sizes.image_crops[list(row.images(sizes))].sum())
        for group in row.groups:
            price += self.text(group.prefix_tokens)
            price += sum(self.text(b, group.prefix_tokens) for b in group.branch_tokens(sizes))
        return price


TOKENS_ALONE = Costs()
