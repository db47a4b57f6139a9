"""Entries and pictures -> Prompt: what is asked, and which of its beginning others may share."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b

from PIL import Image
from torch import Tensor

from foveal.data.encode import AskedTurn, TurnProcessor, encode_turns


@dataclass(frozen=True)
class PromptImage:
    """One picture of a prompt; it is cut when its prompt is read, not before."""

    key: Hashable
    """Equal keys: the same picture."""

    tokens: int

    grid: tuple[int, int]
    """Rows and columns of its crops."""

    cut: Callable[[], Tensor]
    """-> (crops, 3, size, size), uint8; its own crops, row by row."""


def prompt_image(image: Image.Image, processor: TurnProcessor, key: Hashable = None) -> PromptImage:
    """Describe an RGB picture in memory; without a key, its pixels tell it from others."""
    if key is None:
        digest = blake2b(image.tobytes(), digest_size=16, person=b"%dx%d" % image.size)
        key = digest.digest()
    tokens = processor.num_image_tokens(*image.size)
    return PromptImage(key, tokens, processor.grid(*image.size), partial(processor.cut, image))


@dataclass(frozen=True)
class Stretch:
    """Part of a prompt as the model reads it."""

    ids: tuple[int, ...]
    images: tuple[PromptImage, ...] = ()
    """Pictures that stand in it, in order."""


@dataclass(frozen=True)
class Prompt:
    """A whole prompt; each picture stands as one entry."""

    entries: tuple[int, ...]
    """Token ids, and -(k + 1) where image k stands."""

    images: tuple[PromptImage, ...] = ()

    shared_entries: int | None = None
    """Entries at its beginning that may be kept for others; none: up to its last picture."""

    @cached_property
    def prefix_entries(self) -> int:
        """Entries that may be shared; the last entry never is, since it is asked for the answer."""
        shared = self.shared_entries
        if shared is None:
            shared = max((at + 1 for at, one in enumerate(self.entries) if one < 0), default=0)
        return min(shared, len(self.entries) - 1)

    @cached_property
    def prefix_key(self) -> Hashable:
        """Equal for prompts that begin with the same tokens and pictures; none: nothing shared."""
        shared = self.entries[: self.prefix_entries]
        return tuple((self.images[-1 - one].key,) if one < 0 else one for one in shared) or None

    @cached_property
    def tokens(self) -> int:
        """Length with the pictures written out."""
        return self._count(self.entries)

    @cached_property
    def prefix_tokens(self) -> int:
        """Length of what may be shared."""
        return self._count(self.entries[: self.prefix_entries])

    def _count(self, entries: Sequence[int]) -> int:
        return sum(self.images[-1 - one].tokens if one < 0 else 1 for one in entries)

    def stretch(self, start: int, end: int | None, image_token_id: int) -> Stretch:
        """Write out the entries from `start` to `end`."""
        ids: list[int] = []
        images: list[PromptImage] = []
        for entry in self.entries[start:end]:
            if entry < 0:
                images.append(self.images[-1 - entry])
                ids += [image_token_id] * images[-1].tokens
            else:
                ids.append(entry)
        return Stretch(tuple(ids), tuple(images))


def prompt_of_turns(
    turns: Sequence[tuple[str, Sequence[PromptImage], str | None]],
    processor: TurnProcessor,
    system: str = "",
) -> Prompt:
    """Encode a conversation as training does: each turn's prompt, and the answers between them.

    Args:
        turns: (user, pictures, answer); the last answer is none: it is asked for.
        processor: of the model.
        system: what the model is told before the first turn.
    """
    asked = [AskedTurn(user, len(shown), answer) for user, shown, answer in turns]
    encoded = encode_turns(asked, processor, system)
    entries = tuple(entry for turn in encoded for part in turn for entry in part)
    return Prompt(entries, tuple(image for _, shown, _ in turns for image in shown))
