"""What a converter yields: an example to be written, and where its pictures come from."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from foveal.config import Columns
from foveal.data.convert.sources.source import Entry
from foveal.data.convert.sources.values import UnfitError
from foveal.data.example import Turn

TWIN = "another file has its name"
"""Why something is left out that would be written over, or could be meant as well."""


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
    """What to ask of each picture, where the data set has no questions of its own."""

    seed: int = 0
    """Start of every random choice."""

    columns: Columns = field(default_factory=Columns, repr=False)
    """Which columns of a table hold what, where they have names of their own."""


@dataclass(frozen=True)
class DraftImage:
    """A picture to be copied as it is, once it has been decoded without an error."""

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
    """One example to be written, once its pictures are."""

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
