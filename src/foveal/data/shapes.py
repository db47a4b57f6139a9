"""What an image costs and how it stands in a text, known from its size alone (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.data.images.frames import FrameStrip, parse_strip

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from foveal.data.turn_processor import TurnProcessor


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


class ClipReader(Protocol):
    """What the data walk asks of a model that takes clips as they are, as strips of frames."""

    def shape(self, width: int, height: int, strip: FrameStrip) -> ImageShape:
        """Say what a clip costs and how it stands in a text; the size is that of its strip."""
        ...

    def pixels(self, image: "Image", strip: FrameStrip) -> "Mapping[str, Tensor]":
        """Turn a strip of upright frames into what the tower takes, once it is stacked."""
        ...


def shape_of(processor: "TurnProcessor", path: str | Path, size: tuple[int, int]) -> ImageShape:
    """Say what an image or a strip of a clip's frames costs and how it stands in a text.

    Raises:
        ValueError: the model takes none of this size.
    """
    strip = parse_strip(path)
    if strip is None:
        return processor.shape(*size)
    if processor.clip_reader is None:
        raise ValueError("this model takes no clips as they are")
    return processor.clip_reader.shape(*size, strip)


def pixels_of(
    processor: "TurnProcessor", path: str | Path, image: "Image"
) -> "Mapping[str, Tensor]":
    """Turn an upright image or a strip of a clip's frames into what the tower takes."""
    strip = parse_strip(path)
    if strip is None or processor.clip_reader is None:
        return processor.pixels(image)
    return processor.clip_reader.pixels(image, strip)


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
