"""What a converter yields: an example to be written, with the images that a row names."""

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import unquote

from foveal.config import Columns
from foveal.data.convert.sources.source import Entry
from foveal.data.convert.sources.values import UnfitError, present
from foveal.data.example import Turn

TWIN = "another file has its name"
"""Why something is left out that would be written over, or could be meant as well."""


Find = Callable[[str], Entry | bytes | None]
"""From a path as a row writes it to the file, or its content; none: there is no such image."""

WRAPPERS = ("bytes", "path", "image", "image_url", "url")
"""Keys of a mapping that wraps an image, the surest first."""

_ENDINGS = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
_LONGEST_PATH = 1024

_UPLOADED = re.compile(r"/data/(?:upload/\d+/[0-9a-f]{8}-(.+)|local-files/\?d=(.+))$")
"""Address that Label Studio gives an image -> its name before, or its path below the folder."""


@dataclass(frozen=True)
class Options:
    """What a person may choose about a conversion; each kind heeds those that concern it."""

    num_frames: int = 8
    """Frames taken of a clip."""

    keep_clips: bool = field(default=False, repr=False)
    """Whether clips stay whole, and their frames are taken when they are needed."""

    classes: str = "all"
    """`all`, `first10` (any number) in the order of their names, or names between commas."""

    official_split: Literal[1, 2, 3] = 1
    """Which of UCF-101's three lists of train and test clips."""

    validation_fraction: float = 0.1
    """Share of the training groups that become `val` where a data set has none of its own."""

    question: str | None = None
    """What to ask of each image, where the data set has no questions of its own."""

    seed: int = 0
    """Start of every random choice."""

    columns: Columns = field(default_factory=Columns, repr=False)
    """Which columns of a table hold what, where they have names of their own."""


@dataclass(frozen=True)
class DraftImage:
    """An image to be copied as it is, once it has been decoded without an error."""

    source: Entry | bytes
    target: str
    """Path below OUT/images."""


@dataclass(frozen=True)
class Clip:
    """A clip to be taken apart into frames, one JPEG each; or to be copied as it is."""

    source: Entry
    targets: tuple[str, ...]
    """Paths below OUT/images, one a frame, or that of the whole."""

    stays_whole: bool = False


@dataclass(frozen=True)
class Draft:
    """One example to be written, once its images are."""

    split: str
    turns: tuple[Turn, ...]
    media: tuple[DraftImage | Clip, ...] = ()
    set_name: str | None = None
    """First part of the file's name, where it is not the kind's."""

    system: str = ""
    """What the model is told before the first turn."""

    @property
    def label(self) -> str:
        """The answer, where it is one of a closed set; else nothing."""
        return self.turns[-1].assistant if self.turns[-1].choices else ""


@dataclass(frozen=True)
class LeftOutRow:
    """Something in the source that becomes no example."""

    name: str
    reason: str
    """In a few words that are the same for each thing left out for it."""


def attempt(
    name: str, draft: Callable[..., Draft | Iterable[Draft | LeftOutRow]], *arguments: Any
) -> Iterator[Draft | LeftOutRow]:
    """Yield what `draft` makes of the arguments, or why it makes no example of them."""
    try:
        drafted = draft(*arguments)
        yield from [drafted] if isinstance(drafted, Draft) else drafted
    except UnfitError as error:
        yield LeftOutRow(name, str(error))


def images_of(value: Any, split: str, find: Find) -> list[DraftImage]:
    """Read one image or a list of them.

    Args:
        value: none, or anything.
        split: first folder of the images' names.
        find: looks a path up.

    Raises:
        UnfitError: one of them cannot be had.
    """
    value = present(value)
    if value is None:
        return []
    return [_image(one, split, find) for one in (value if isinstance(value, list) else [value])]


def _image(value: Any, split: str, find: Find) -> DraftImage:
    if isinstance(value, Mapping):  # of bytes and path, as Arrow holds images; or of an address
        value = next((value[key] for key in WRAPPERS if key in value), None)
        return _image(value, split, find)
    if isinstance(value, bytes):
        return DraftImage(value, _target(split, value))
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # an id, as COCO's and Visual Genome's
    if not isinstance(value, str):
        raise UnfitError("a picture that is neither bytes nor a path")
    if value.startswith("data:"):
        content = _decoded(value.partition(",")[2])
        if content is None:
            raise UnfitError("a picture in broken base64")
        kind = re.match(r"data:image/(\w+)", value)
        return DraftImage(content, _target(split, content, kind[1] if kind else "img"))
    if re.match(r"(https?|s3|gs)://", value):
        raise UnfitError("a picture on the web; fetch it and name its file")
    if len(value) > _LONGEST_PATH:
        if not (content := _decoded(value)):
            raise UnfitError("a picture that is neither bytes nor a path")
        return DraftImage(content, _target(split, content))
    found = find(value.removeprefix("file://"))
    if found is None and (uploaded := _UPLOADED.match(value)):
        found = find(unquote(uploaded[1] or uploaded[2]))
    if found is None:
        raise UnfitError("no picture of that name")
    # Folders are kept: LLaVA's mixture has files of one name in several.
    name = f"{split}/{found.name}" if isinstance(found, Entry) else _target(split, found)
    return DraftImage(found, name)


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _target(split: str, content: bytes, ending: str | None = None) -> str:
    """Name an image by its content, so that it is stored once."""
    return f"{split}/{sha256(content).hexdigest()[:20]}.{ending or ending_of(content)}"


def ending_of(content: bytes) -> str:
    """Tell the ending that an image's file should have from how it begins."""
    return next((end for start, end in _ENDINGS.items() if content.startswith(start)), "img")
