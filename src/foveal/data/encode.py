"""Example + a processor -> Encoded: token ids, and which of them are learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.checking.texts import NO_PAIR
from foveal.data.example import Example
from foveal.data.images.image_folder import ImageFolder
from foveal.data.read_turns import read_turns
from foveal.data.shapes import ImageShape, expand_entries
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import DataError

IGNORED = -100
"""Label of a token that is not to be learnt."""


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
        DataError: an image or a clip is not there, or cannot be read.
        ValueError: image tags written in a text do not match its images, or a box is none.
    """
    read = read_turns(example, processor, folder)
    encoded = processor.encode_turns(read.turns, example.system)
    return Encoded(
        example.id,
        np.asarray(encoded.entries, np.int32),
        np.asarray(encoded.learnt, np.bool_),
        encoded.prompt_entries,
        tuple(chain.from_iterable(read.images)),
    )


def encode_pairs(
    example: Example, processor: TurnProcessor, folder: ImageFolder
) -> Iterator[list[Encoded]]:
    """Encode each turn that has rejected answers: the assistant's answer, then those.

    They begin with the same prompt, all that was said before the answer; the answer is learnt.

    Raises:
        DataError: as `encode`, or no turn has a rejected answer.
        ValueError: as `encode`, or two answers come to the same tokens.
    """
    if not any(turn.rejected for turn in example.turns):
        raise DataError(NO_PAIR)
    for place, turn in enumerate(example.turns):
        if not turn.rejected:
            continue
        answers = []
        for text in (turn.assistant, *turn.rejected):
            turns = (*example.turns[:place], turn.model_copy(update={"assistant": text}))
            answered = example.model_copy(update={"turns": turns})
            answers.append(_last_answer(encode(answered, processor, folder)))
        if len({one.entries.tobytes() for one in answers}) < len(answers):
            raise ValueError(
                f"turn {place + 1}: two of its answers are the same tokens to the model, and such "
                "a pair teaches nothing; drop one"
            )
        yield answers


def _last_answer(encoded: Encoded) -> Encoded:
    """Learn the last answer alone, and take all before it for the prompt."""
    start = int(np.flatnonzero(~encoded.learnt)[-1]) + 1
    learnt = np.arange(len(encoded.entries)) >= start
    return replace(encoded, learnt=learnt, prompt_entries=start)
