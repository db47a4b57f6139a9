"""Example + a processor -> Encoded: token ids, and which of them are learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.data.example import Example, ImageFolder

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

IGNORED = -100
"""Label of a token that is not to be learnt."""


TurnsSetting = Literal["recipe", "template"]
"""How turns follow each other: see the recipe's `data.turns`."""


class AskedTurn(NamedTuple):
    """One turn of a conversation, its images only counted."""

    user: str
    num_images: int
    assistant: str | None
    """None: it is asked for."""


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

    @property
    def turns(self) -> TurnsSetting:
        """See `data.turns`: by the template, no text ends and none begins between two turns."""
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
    turns = encode_turns(asked_turns(example), processor, example.system)
    entries = [entry for prompt, answer in turns for entry in (*prompt, *answer)]
    learnt = [part for turn in turns for part in (np.zeros(len(turn[0])), np.ones(len(turn[1])))]
    return Encoded(
        example.id,
        np.asarray(entries, np.int32),
        np.concatenate(learnt).astype(np.bool_),
        len(turns[0][0]),
        tuple(folder.find(path) for path in example.images),
    )


def asked_turns(example: Example) -> list[AskedTurn]:
    """List an example's turns."""
    return [AskedTurn(one.user, len(one.images), one.assistant) for one in example.turns]


def encode_turns(
    turns: Sequence[AskedTurn], processor: TurnProcessor, system: str = ""
) -> list[tuple[list[int], list[int]]]:
    """Encode each turn's prompt and answer; a system text belongs to the first prompt.

    Returns:
        (prompt, answer) of each turn, which follow each other without anything between them;
        image k of the conversation stands as -(k + 1).

    Raises:
        ValueError: image tags written in a text do not match its images.
    """
    encoded: list[tuple[list[int], list[int]]] = []
    first_image = 0  # a turn counts its images from 0, a conversation goes on
    for turn in turns:
        prompt = processor.encode_prompt(turn.user, turn.num_images)
        prompt = [entry - first_image if entry < 0 else entry for entry in prompt]
        answer = [] if turn.assistant is None else processor.encode_answer(turn.assistant)
        first_image += turn.num_images
        encoded.append((prompt, answer))
    if system:
        encoded[0][0][:1] = processor.encode_system(system)
    if processor.turns == "template":
        for (_, answer), (prompt, _) in pairwise(encoded):
            del answer[-1:], prompt[:1]
    return encoded
