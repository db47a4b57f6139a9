"""What the data walk asks of a model's processor: its words, its images, where tokens stand."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.config import DataSettings
from foveal.data.images.boxes import BoxFrame, BoxUnit
from foveal.data.images.frames import FrameChoice, FrameStrip, parse_strip
from foveal.data.shapes import ImageShape
from foveal.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

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


class ClipReader(Protocol):
    """What the data walk asks of a model that takes clips as they are, as strips of frames."""

    def shape(self, width: int, height: int, strip: FrameStrip) -> ImageShape:
        """Say what a clip costs and how it stands in a text; the size is that of its strip."""
        ...

    def pixels(self, image: "Image", strip: FrameStrip) -> "Mapping[str, Tensor]":
        """Turn a strip of upright frames into what the tower takes, once it is stacked."""
        ...


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
    def long_context_tokens(self) -> int | None:
        """Length above which an example is treated as long; none: no difference."""
        ...

    def words_fingerprint(self) -> str:
        """Name all that the entries of a conversation hang on."""
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


def shape_of(processor: TurnProcessor, path: str | Path, size: tuple[int, int]) -> ImageShape:
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


def pixels_of(processor: TurnProcessor, path: str | Path, image: "Image") -> "Mapping[str, Tensor]":
    """Turn an upright image or a strip of a clip's frames into what the tower takes."""
    strip = parse_strip(path)
    if strip is None or processor.clip_reader is None:
        return processor.pixels(image)
    return processor.clip_reader.pixels(image, strip)


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
