"""Example + a processor -> Encoded: token ids, and which of them are learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.data.example import Example, ImageFolder

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

IGNORED = -100
"""Label of a token that is not to be learnt."""


class TurnProcessor(Protocol):
    """What the data walk asks of a model's processor."""

    @property
    def image_token_id(self) -> int:
        """Id that stands where an image is."""
        ...

    def encode_prompt(self, user: str, num_images: int) -> list[int]:
        """Encode a turn's prompt; its image k stands as the one number -(k + 1)."""
        ...

    def encode_system(self, text: str) -> list[int]:
        """Encode a system message, which stands in place of the first prompt's first token."""
        ...

    def encode_answer(self, assistant: str) -> list[int]:
        """Encode a turn's answer with the tokens that end it."""
        ...

    def num_image_tokens(self, width: int, height: int) -> int:
        """Count the tokens of a picture."""
        ...

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of crops of a picture."""
        ...

    def cut(self, image: "Image") -> "Tensor":
        """Cut a picture into crops, (crops, 3, size, size), uint8, row by row."""
        ...


@dataclass(frozen=True)
class Encoded:
    """One example as tokens; each image still stands as one entry."""

    id: str

    entries: NDArray[np.int32]
    """(entries,) Token ids, and -(k + 1) where image k of the example stands."""

    learnt: NDArray[np.bool_]
    """(entries,) Whether the entry is to be predicted."""

    prompt_entries: int
    """Entries of the first turn's prompt."""

    images: tuple[Path, ...]

    def expand(self, image_tokens: Sequence[int], image_token_id: int) -> "Expanded":
        """Write every image out as its run of tokens.

        Args:
            image_tokens: tokens of each image of the example.
            image_token_id: id that stands for all of them.
        """
        is_image = self.entries < 0
        repeats = np.ones(len(self.entries), np.int64)
        repeats[is_image] = np.asarray(image_tokens, np.int64)[-1 - self.entries[is_image]]
        ids = np.where(is_image, image_token_id, self.entries).astype(np.int64)
        return Expanded(np.repeat(ids, repeats), np.repeat(self.learnt, repeats))


@dataclass(frozen=True)
class Expanded:
    """One example as the model reads it."""

    ids: NDArray[np.int64]
    """(tokens,)"""

    learnt: NDArray[np.bool_]
    """(tokens,)"""


def encode(example: Example, processor: TurnProcessor, folder: ImageFolder) -> Encoded:
    """Turn an example into tokens; every turn is a prompt of its own, its answer is learnt.

    Raises:
        DataError: an image is not there.
        ValueError: image tags written in a text do not match its images.
    """
    entries: list[int] = []
    learnt: list[bool] = []
    images: list[Path] = []
    prompt_entries = 0
    for turn in example.turns:
        prompt = processor.encode_prompt(turn.user, len(turn.images))
        answer = processor.encode_answer(turn.assistant)
        first_image = len(images)  # a turn counts its images from 0, an example goes on
        entries += [entry - first_image if entry < 0 else entry for entry in prompt] + answer
        learnt += [False] * len(prompt) + [True] * len(answer)
        images += [folder.find(path) for path in turn.images]
        prompt_entries = prompt_entries or len(prompt)
    return Encoded(
        example.id,
        np.asarray(entries, np.int32),
        np.asarray(learnt, np.bool_),
        prompt_entries,
        tuple(images),
    )
