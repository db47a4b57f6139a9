"""Example + a processor -> Encoded: token ids, and which of them are learnt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.data.example import Example, ImageFolder
from foveal.data.shapes import ImageShape, expand_entries
from foveal.errors import DataError

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


class EncodedTurns(NamedTuple):
    """A conversation as tokens; image k of it stands as the one entry -(k + 1)."""

    entries: list[int]
    learnt: list[bool]
    """Of each entry, whether it belongs to an answer."""

    prompt_entries: int
    """Entries before the first answer."""


class TurnProcessor(Protocol):
    """What the data walk asks of a model: its words, its images, where tokens stand."""

    @property
    def image_token_id(self) -> int:
        """Id that takes a feature of an image."""
        ...

    @property
    def long_context_tokens(self) -> int | None:
        """Length above which an example is treated as long; none: no difference."""
        ...

    def encode_turns(self, turns: Sequence[AskedTurn], system: str = "") -> EncodedTurns:
        """Encode a conversation, as the model will be asked and as it shall answer.

        Args:
            turns: of which the last may be asked for.
            system: what the model is told before the first; empty: nothing.

        Raises:
            ValueError: the images that a text speaks of are not those that it has.
        """
        ...

    def shape(self, width: int, height: int) -> ImageShape:
        """Say what an image costs and how it stands in a text, from its size alone."""
        ...

    def pixels(self, image: "Image") -> "Mapping[str, Tensor]":
        """Turn an upright RGB image into what the tower takes, once it is stacked."""
        ...

    def stack(
        self, images: "Sequence[Mapping[str, Tensor]]", shapes: Sequence[ImageShape]
    ) -> "dict[str, Tensor]":
        """Put the pixels of several images together for one pass of the tower."""
        ...

    def positions(self, ids: NDArray[np.int64], shapes: Sequence[ImageShape]) -> NDArray[np.int64]:
        """Place the tokens of one example, (axes, tokens); `shapes` of its images in order."""
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

    def expand(self, shapes: Sequence[ImageShape]) -> "Expanded":
        """Write every image out as its run of ids.

        Args:
            shapes: of each image of the example.
        """
        ids, repeats = expand_entries(self.entries, shapes)
        shown = tuple(shapes[-1 - entry] for entry in self.entries[self.entries < 0].tolist())
        return Expanded(ids, np.repeat(self.learnt, repeats), shown)


@dataclass(frozen=True)
class Expanded:
    """One example as the model reads it."""

    ids: NDArray[np.int64]
    """(tokens,)"""

    learnt: NDArray[np.bool_]
    """(tokens,)"""

    shown: tuple[ImageShape, ...]
    """Of every image, in the order in which the text shows them."""


def encode(example: Example, processor: TurnProcessor, folder: ImageFolder) -> Encoded:
    """Turn an example into tokens; every turn is a prompt of its own, its answer is learnt.

    Raises:
        DataError: an image is not there.
        ValueError: image tags written in a text do not match its images.
    """
    encoded = processor.encode_turns(asked_turns(example), example.system)
    return Encoded(
        example.id,
        np.asarray(encoded.entries, np.int32),
        np.asarray(encoded.learnt, np.bool_),
        encoded.prompt_entries,
        tuple(folder.find(path) for path in example.images),
    )


def encode_pairs(
    example: Example, processor: TurnProcessor, folder: ImageFolder
) -> Iterator[list[Encoded]]:
    """Encode each turn that has rejected answers: the assistant's answer, then those.

    They begin with the same prompt, all that was said before the answer; the answer is learnt.

    Raises:
        DataError: an image is not there, or no turn has a rejected answer.
        ValueError: image tags do not match, or two answers come to the same tokens.
    """
    if not any(turn.rejected for turn in example.turns):
        raise DataError(
            'no turn has a "rejected" answer, and objective=preferences learns from nothing else'
        )
    turns = asked_turns(example)
    images = tuple(folder.find(path) for path in example.images)
    shown = 0
    for place, turn in enumerate(example.turns):
        shown += len(turn.images)
        if not turn.rejected:
            continue
        before = turns[:place]
        answers = [
            _answer(
                example.id,
                processor.encode_turns(
                    [*before, turns[place]._replace(assistant=text)], example.system
                ),
                images[:shown],
            )
            for text in (turn.assistant, *turn.rejected)
        ]
        if len({one.entries.tobytes() for one in answers}) < len(answers):
            raise ValueError(
                f"turn {place + 1}: two of its answers are the same tokens to the model, and such "
                "a pair teaches nothing; drop one"
            )
        yield answers


def _answer(name: str, encoded: EncodedTurns, images: tuple[Path, ...]) -> Encoded:
    """Take all before the last answer for the prompt."""
    entries, learnt = np.asarray(encoded.entries, np.int32), np.asarray(encoded.learnt, np.bool_)
    start = int(np.flatnonzero(~learnt)[-1]) + 1
    return Encoded(name, entries, np.arange(len(entries)) >= start, start, images)


def asked_turns(example: Example) -> list[AskedTurn]:
    """List an example's turns."""
    return [AskedTurn(one.user, len(one.images), one.assistant) for one in example.turns]
