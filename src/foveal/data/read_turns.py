"""Example -> its turns as a model is to read them: images found, boxes in its numbers."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from foveal.data.example import Example, Turn
from foveal.data.images.archives import state_of
from foveal.data.images.boxes import BoxMap, box_edges, read_boxes
from foveal.data.images.clips import choose_frames
from foveal.data.images.frames import FrameChoice
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_size
from foveal.data.images.objects import called
from foveal.data.turn_processor import AskedTurn, TurnProcessor
from foveal.errors import DataError


class ReadTurns(NamedTuple):
    """The turns of an example as a model is to read them."""

    turns: list[AskedTurn]
    """With boxes in the model's numbers."""

    images: list[list[Path]]
    """Of each turn, frames of clips too."""

    boxes: BoxMap | None
    """What moved the boxes; none: there are none."""


def read_turns(example: Example, processor: TurnProcessor, folder: ImageFolder) -> ReadTurns:
    """Find the images of an example's turns, and move the boxes in their texts.

    Raises:
        DataError: an image or a clip is not there, or cannot be read.
        ValueError: a box is none, or it is open in which image it lies.
    """
    shown = [show_turn(turn, folder, processor.frame_choice) for turn in example.turns]
    turns = asked_turns(example, [len(some) for some in shown], processor.frame_choice)
    if not (processor.boxes and holds_boxes(example)):
        return ReadTurns(turns, shown, None)
    sizes = [known_size(path) for path in chain.from_iterable(shown)]
    boxes = box_map_for(example, sizes, processor)
    return ReadTurns(move_boxes(turns, boxes), shown, boxes)


def show_turn(turn: Turn, folder: ImageFolder, choice: FrameChoice) -> list[Path]:
    """Find the images of a turn, and behind them the frames of its clips.

    Raises:
        DataError: one is not there, or a clip cannot be read.
    """
    clips = [choose_frames(folder.find(path), choice) for path in turn.videos]
    return [*(folder.find(path) for path in turn.images), *chain.from_iterable(clips)]


def asked_turns(
    example: Example, num_images: Sequence[int], choice: FrameChoice
) -> list[AskedTurn]:
    """List an example's turns.

    Args:
        example: whose texts they are.
        num_images: of each turn, frames of clips too.
        choice: how clips are shown.
    """
    return [
        AskedTurn(turn.user, number, turn.assistant, len(turn.videos) if choice.as_strip else 0)
        for turn, number in zip(example.turns, num_images, strict=True)
    ]


def known_size(path: Path) -> tuple[int, int]:
    """Read (width, height) of an image once for all that is asked about it."""
    try:
        return _size_in_state(path, tuple(state_of(path)))
    except OSError as error:
        raise DataError(f"{called(path)}: {error.strerror}") from error


@lru_cache(4096)
def _size_in_state(path: Path, _state: tuple[int, ...]) -> tuple[int, int]:
    return image_size(path)


def holds_boxes(example: Example, with_rejected: bool = False) -> bool:
    """Tell whether any text of an example speaks of a box, or a rejected answer where asked for."""
    return any(
        read_boxes(text)
        for turn in example.turns
        for text in (*turn.texts, *(turn.rejected if with_rejected else ()))
    )


def box_map_for(
    example: Example, sizes: Sequence[tuple[int, int]], processor: TurnProcessor
) -> BoxMap:
    """Find what moves the boxes of an example that holds some.

    Args:
        example: whose texts hold boxes.
        sizes: (width, height) of all its images.
        processor: of the model.

    Raises:
        ValueError: it is open in which image they lie, or they are to be chosen from.
    """
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


def move_boxes(turns: Sequence[AskedTurn], boxes: BoxMap) -> list[AskedTurn]:
    """Write the boxes of turns in the numbers that a model speaks in.

    Raises:
        ValueError: a box is none.
    """
    return [
        turn._replace(
            user=boxes.to_model(turn.user),
            assistant=None if turn.assistant is None else boxes.to_model(turn.assistant),
        )
        for turn in turns
    ]


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
