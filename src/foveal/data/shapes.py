"""What an image costs and how it stands in a text, known from its size alone (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageShape:
    """The run of ids that stands for an image; images of one shape cost the same."""

    runs: tuple[tuple[int, int], ...]
    """(id, how often in a row), from the first to the last id of the image: markers, row and
    column tags, placeholders."""

    features: int
    """Ids of it that take a feature of the image."""

    crops: int
    """Passes of the vision tower, in units of the family's row price."""

    grid: tuple[int, ...] = ()
    """What positions hang on: (rows, columns) or (time, rows, columns); empty: on nothing."""

    seconds: float | None = None
    """From one time of the grid of a clip to the next; none: it is an image."""

    @cached_property
    def tokens(self) -> int:
        """Length of the run."""
        return sum(count for _, count in self.runs)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The run written out, (tokens,)."""
        ids, counts = zip(*self.runs, strict=True)
        return np.repeat(np.asarray(ids, np.int64), counts)


def expand_entries(
    entries: NDArray[np.int32], shapes: Sequence[ImageShape]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write every image out as its run of ids.

    Args:
        entries: token ids, and -(k + 1) where image k stands.
        shapes: of each image, by its number.

    Returns:
        ids, (tokens,), and how many tokens each entry became, (entries,).
    """
    is_image = entries < 0
    shown = [shapes[-1 - entry] for entry in entries[is_image].tolist()]
    repeats = np.ones(len(entries), np.int64)
    repeats[is_image] = [shape.tokens for shape in shown]
    ids = np.repeat(entries.astype(np.int64), repeats)
    if shown:
        ids[ids < 0] = np.concatenate([shape.ids for shape in shown])
    return ids, repeats
