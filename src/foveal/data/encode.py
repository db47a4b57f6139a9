"""Example + a processor -> Encoded: token ids, and which of them are learnt."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.checking.texts import NO_PAIR
from foveal.data.example import Example, Turn
from foveal.data.images.archives import state_of
from foveal.data.images.boxes import BoxMap, box_edges, read_boxes
from foveal.data.images.clips import choose_frames
from foveal.data.images.frames import FrameChoice, file_of
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_size
from foveal.data.images.objects import called
from foveal.data.shapes import ImageShape, expand_entries
from foveal.data.turn_processor import AskedTurn, TurnProcessor, shape_of
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
        ValueError: image tags written in a text do not match its images, or a box is none, or it is
            open in which image it lies.
    """
    choice = processor.frame_choice
    shown = [_images_of_turn(turn, folder, choice) for turn in example.turns]
    images = tuple(chain.from_iterable(shown))
    turns = [
        AskedTurn(turn.user, len(some), turn.assistant, len(turn.videos) if choice.as_strip else 0)
        for turn, some in zip(example.turns, shown, strict=True)
    ]
    if processor.boxes and holds_boxes(example):
        boxes = _box_map_for(example, [known_size(path) for path in images], processor)
        turns = [
            turn._replace(
                user=boxes.to_model(turn.user), assistant=boxes.to_model(turn.assistant or "")
            )
            for turn in turns
        ]
    encoded = processor.encode_turns(turns, example.system)
    return Encoded(
        example.id,
        np.asarray(encoded.entries, np.int32),
        np.asarray(encoded.learnt, np.bool_),
        encoded.prompt_entries,
        images,
    )


def _images_of_turn(turn: Turn, folder: ImageFolder, choice: FrameChoice) -> list[Path]:
    """Find the images of a turn, and behind them the frames of its clips."""
    clips = [choose_frames(folder.find(path), choice) for path in turn.videos]
    return [*(folder.find(path) for path in turn.images), *chain.from_iterable(clips)]


def holds_boxes(example: Example) -> bool:
    """Tell whether any text of an example speaks of a box."""
    return any(read_boxes(text) for turn in example.turns for text in turn.texts)


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


def _box_map_for(
    example: Example, sizes: Sequence[tuple[int, int]], processor: TurnProcessor
) -> BoxMap:
    """Find what moves the boxes of an example that holds some, by the sizes of all its images."""
    if processor.frame_choice.as_strip and any(turn.videos for turn in example.turns):
        raise ValueError(
            "a text beside a clip speaks of a box; leave data.clips out, and its frames are images"
        )
    boxes = find_box_map(sizes, processor)
    if boxes is None:
        raise ValueError(
            "a text speaks of a box, and not all images of the example have one size: give each "
            "image a line of its own"
        )
    if any(read_boxes(choice) for turn in example.turns for choice in turn.choices):
        raise ValueError("choices hold boxes, which cannot be chosen from; leave choices out")
    return boxes


def find_box_map(sizes: Sequence[tuple[int, int]], processor: TurnProcessor) -> BoxMap | None:
    """Find what moves boxes of the data into a model's numbers and back.

    Args:
        sizes: (width, height) of the images that the boxes may lie in.
        processor: of the model.

    Returns:
        None where the data's numbers are no boxes, or it is open in which image they lie.
    """
    if processor.boxes is None or len(set(sizes)) != 1:
        return None
    return BoxMap(processor.box_frame(*sizes[0]), box_edges(processor.boxes, sizes[0]))


def known_size(path: Path) -> tuple[int, int]:
    """Read (width, height) of an image once for all that is asked about it."""
    try:
        return _size_in_state(path, tuple(state_of(path)))
    except OSError as error:
        raise DataError(f"{called(path)}: {error.strerror}") from error


@lru_cache(4096)
def _size_in_state(path: Path, _state: tuple[int, ...]) -> tuple[int, int]:
    return image_size(path)


@dataclass(frozen=True)
class TokenCounts:
    """How long an example is for a model."""

    turns: tuple[int, ...]
    """Tokens of each turn: prompt, images and answer."""

    learnt: int
    """Tokens of all turns that are learnt."""

    rejected: tuple[tuple[int, int], ...] = ()
    """Turn from 1, and all tokens up to the end of a rejected answer of it."""


CountTokens = Callable[[Example, ImageFolder], TokenCounts]
"""From an example and where its images lie; a function of a module, or a partial."""


def count_tokens(processor: TurnProcessor, example: Example, folder: ImageFolder) -> TokenCounts:
    """Count what a run over the same processor would have.

    Raises:
        DataError, ValueError: as `encode`, or the model takes no image of this size.
    """

    @cache
    def image_tokens(path: Path) -> int:
        size = known_size(path)
        try:
            return shape_of(processor, path, size).tokens
        except (DataError, ValueError) as error:  # it knows no name
            names = (one for turn in example.turns for one in (*turn.images, *turn.videos))
            name = next((one for one in names if folder.find(one) == file_of(path)), path.name)
            raise DataError(f"image {name}: {error}") from error

    def read(*turns: Turn) -> tuple[NDArray[np.int64], int]:
        """Count all tokens up to the end of each of some turns, and those that are learnt."""
        one = encode(example.model_copy(update={"turns": turns}), processor, folder)
        is_image = one.entries < 0
        tokens = np.ones(len(one.entries), np.int64)
        shown = (one.images[-1 - entry] for entry in one.entries[is_image].tolist())
        tokens[is_image] = [image_tokens(path) for path in shown]
        is_end = one.learnt & ~np.append(one.learnt[1:], False)
        return tokens.cumsum()[is_end], int(one.learnt.sum())

    totals, learnt = read(*example.turns)
    if len(totals) > 1:  # a conversation that ends there has a token more than one that goes on
        alone, _ = read(example.turns[0])
        totals[:-1] += alone - totals[0]
    rejected = list[tuple[int, int]]()
    for number, turn in enumerate(example.turns, start=1):
        for text in turn.rejected:
            worse = turn.model_copy(update={"assistant": text})
            (*_, total), _ = read(*example.turns[: number - 1], worse)
            rejected.append((number, int(total)))
    return TokenCounts(tuple(np.diff(totals, prepend=0).tolist()), learnt, tuple(rejected))
