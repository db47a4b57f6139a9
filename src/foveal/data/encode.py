"""Example + a processor -> Encoded: token ids, and which of them are learnt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.config import DataSettings
from foveal.data.archives import state_of
from foveal.data.boxes import BoxFrame, BoxMap, BoxUnit, box_edges, read_boxes
from foveal.data.clips import choose_frames
from foveal.data.example import Example, ImageFolder, Turn
from foveal.data.frames import FrameChoice
from foveal.data.media import image_size
from foveal.data.objects import called
from foveal.data.shapes import ClipReader, ImageShape, expand_entries
from foveal.errors import ConfigError, DataError

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

    num_clips: int = 0
    """How many of its images, the last ones, are clips that the model takes as they are."""


class EncodedTurns(NamedTuple):
    """A conversation as tokens; image k of it stands as the one entry -(k + 1)."""

    entries: list[int]
    learnt: list[bool]
    """Of each entry, whether it belongs to an answer."""

    prompt_entries: int
    """Entries before the first answer."""


def fingerprint_words(*settings: object) -> str:
    """Name what words are encoded with: tokenizer, template, settings, as texts."""
    return blake2b(repr(settings).encode(), digest_size=16).hexdigest()


class TurnProcessor(Protocol):
    """What the data walk asks of a model: its words, its images, where tokens stand."""

    boxes: BoxUnit | None
    """What numbers of boxes in the data count; none: four numbers are no box."""

    frame_choice: FrameChoice
    """Which frames of a clip are shown."""

    @property
    def clip_reader(self) -> ClipReader | None:
        """None: the model knows clips as several images alone."""
        ...

    @property
    def image_token_id(self) -> int:
        """Id that takes a feature of an image."""
        ...

    @property
    def long_context_tokens(self) -> int | None:
        """Length above which an example is treated as long; none: no difference."""
        ...

    def words_fingerprint(self) -> str:
        """Name all that the entries of a conversation hang on."""
        ...

    @property
    def cuts_images(self) -> bool:
        """Whether an image is laid out as a grid of crops, which `cut` makes."""
        ...

    @property
    def image_backend(self) -> str:
        """Which library resizes images: `pil` or `torchvision`, whose pixels differ a little."""
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

    def box_frame(self, width: int, height: int) -> BoxFrame:
        """Say in which numbers the model speaks of places in an image of some size, pixels."""
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


def read_as(processor: Any, data: DataSettings) -> None:
    """Let a processor read turns, boxes and clips as a recipe's data settings say.

    Raises:
        ConfigError: clips are to be inputs of their own, and the model has none such.
    """
    if data.clips == "video" and processor.clip_reader is None:
        raise ConfigError(
            "data.clips=video: this model takes no clips as they are, or its chat template has no "
            "place for one; leave data.clips out, and their frames are shown as images"
        )
    processor.turns = data.turns
    processor.boxes = data.boxes
    processor.frame_choice = frame_choice_of(data)


def frame_choice_of(data: DataSettings) -> FrameChoice:
    """Read how clips are shown from a recipe's data settings."""
    return FrameChoice(data.frames, data.frames_per_second, data.clips == "video")


class ReadTurns(NamedTuple):
    """The turns of an example as a model is to read them."""

    turns: list[AskedTurn]
    """With boxes in the model's numbers."""

    images: list[list[Path]]
    """Of each turn, frames of clips too."""

    boxes: BoxMap | None
    """What moved the boxes; none: there are none."""


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
        raise DataError(
            'no turn has a "rejected" answer, and objective=preferences learns from nothing else'
        )
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
