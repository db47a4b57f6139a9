"""Entries and images -> Prompt: what is asked, and which of its beginning others may share."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveal.data.encode import find_box_map
from foveal.data.images.boxes import BoxMap
from foveal.data.shapes import ImageShape, expand_entries
from foveal.data.turn_processor import AskedTurn, TurnProcessor

Pixels = Mapping[str, Tensor]
"""An image as the tower takes it, before it is stacked with others."""


@dataclass(frozen=True)
class PromptImage:
    """One image of a prompt; it is opened when its prompt is read, not before."""

    key: Hashable
    """Equal keys: the same image."""

    shape: ImageShape
    pixels: Callable[[], Pixels]

    @property
    def is_clip(self) -> bool:
        """Whether it is a clip that the model takes as it is; its frames as images are images."""
        return self.shape.seconds is not None


def prompt_image(image: Image.Image, processor: TurnProcessor, key: Hashable = None) -> PromptImage:
    """Describe an RGB image in memory; without a key, its pixels tell it from others."""
    if key is None:
        digest = blake2b(image.tobytes(), digest_size=16, person=b"%dx%d" % image.size)
        key = digest.digest()
    return PromptImage(key, processor.shape(*image.size), partial(processor.pixels, image))


@dataclass(frozen=True)
class Stretch:
    """Part of a sequence as the model reads it."""

    ids: NDArray[np.int64]
    """(tokens,)"""

    positions: NDArray[np.int64]
    """(axes, tokens)"""

    images: tuple[PromptImage, ...] = ()
    """Images that stand in it, in order."""

    answer_start: int | None = None
    """Where in it an answer begins; none: it is all asked."""

    def joined(self, other: "Stretch") -> "Stretch":
        """Put another behind it."""
        ids = np.concatenate([self.ids, other.ids])
        positions = np.concatenate([self.positions, other.positions], axis=1)
        start = self.answer_start
        if start is None and other.answer_start is not None:
            start = len(self.ids) + other.answer_start
        return Stretch(ids, positions, self.images + other.images, start)


@dataclass(frozen=True)
class Prompt:
    """A whole prompt; each image stands as one entry."""

    entries: tuple[int, ...]
    """Token ids, and -(k + 1) where image k stands."""

    images: tuple[PromptImage, ...] = ()

    shared_entries: int | None = None
    """Entries at its beginning that may be kept for others; none: up to its last image."""

    @cached_property
    def prefix_entries(self) -> int:
        """Entries that may be shared; the last entry never is, since it is asked for the answer."""
        shared = self.shared_entries
        if shared is None:
            shared = max((at + 1 for at, one in enumerate(self.entries) if one < 0), default=0)
        return min(shared, len(self.entries) - 1)

    @cached_property
    def prefix_key(self) -> Hashable:
        """Equal for prompts that begin with the same tokens and images; none: nothing shared."""
        shared = self.entries[: self.prefix_entries]
        return tuple((self.images[-1 - one].key,) if one < 0 else one for one in shared) or None

    @cached_property
    def tokens(self) -> int:
        """Length with the images written out."""
        return self._count(self.entries)

    @cached_property
    def prefix_tokens(self) -> int:
        """Length of what may be shared."""
        return self._count(self.entries[: self.prefix_entries])

    def _count(self, entries: Sequence[int]) -> int:
        return sum(self.images[-1 - one].shape.tokens if one < 0 else 1 for one in entries)

    def whole(self, processor: TurnProcessor) -> Stretch:
        """Write the entries out and place them."""
        shown = tuple(self.images[-1 - one] for one in self.entries if one < 0)
        shapes = [image.shape for image in shown]
        by_number = [image.shape for image in self.images]
        ids, _ = expand_entries(np.asarray(self.entries, np.int32), by_number)
        return Stretch(ids, processor.positions(ids, shapes), shown)

    def stretches(self, processor: TurnProcessor, cut: int) -> tuple[Stretch, Stretch]:
        """Write the prompt out in two parts: its first `cut` entries, and the others."""
        whole = self.whole(processor)
        tokens = self._count(self.entries[:cut])
        shown = sum(one < 0 for one in self.entries[:cut])
        before = Stretch(whole.ids[:tokens], whole.positions[:, :tokens], whole.images[:shown])
        behind = Stretch(whole.ids[tokens:], whole.positions[:, tokens:], whole.images[shown:])
        return before, behind


def go_on(stretch: Stretch, ids: Sequence[int], start: int = 0) -> Stretch:
    """Place words behind a stretch, of which `start` stand there already."""
    counted = stretch.positions.max() + 1 + start + np.arange(len(ids))
    axes = len(stretch.positions)
    placed = np.broadcast_to(counted, (axes, len(ids)))
    return Stretch(np.asarray(ids, np.int64), placed, answer_start=0)


def find_boxes(
    images: Sequence[PromptImage], sizes: Sequence[tuple[int, int]], processor: TurnProcessor
) -> BoxMap | None:
    """Find what moves the boxes of texts beside some images; none: they can hold none.

    Args:
        images: that the texts are about.
        sizes: (width, height) of each.
        processor: of the model.
    """
    return None if any(one.is_clip for one in images) else find_box_map(sizes, processor)


def prompt_of_turns(
    turns: Sequence[tuple[str, Sequence[PromptImage], str | None]],
    processor: TurnProcessor,
    system: str = "",
) -> Prompt:
    """Encode a conversation as training does: each turn's prompt, and the answers between them.

    Args:
        turns: (user, images, answer), clips behind images; the last answer is none: it is asked
            for.
        processor: of the model.
        system: what the model is told before the first turn.
    """
    asked = [
        AskedTurn(user, len(shown), answer, sum(image.is_clip for image in shown))
        for user, shown, answer in turns
    ]
    entries = processor.encode_turns(asked, system).entries
    return Prompt(tuple(entries), tuple(image for _, shown, _ in turns for image in shown))
