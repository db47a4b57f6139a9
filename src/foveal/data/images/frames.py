"""A clip in a turn -> the frames that are shown of it, each named as a path (pure).

A frame is called by its clip's path and its place, as in `clip.avi#3of8`, or `clip.avi#3of8@2.0`
where frames are taken by time. A model that takes clips as they are is shown a strip of frames, one
below the other, as in `clip.avi#8x0.500000s`. Whatever opens an image by its path opens these too.
"""

import re
from dataclasses import dataclass
from pathlib import Path

CLIP_ENDINGS = (
    *(".avi", ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".ogv"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".asf"),
)
"""How names of clips end; a GIF is a clip where it is called one, and an image elsewhere."""

_NAME = re.compile(r"(?s)(.+)#(\d+)of(\d+)(?:@(\d+\.\d+))?")
_STRIP = re.compile(r"(?s)(.+)#(\d+)x(\d+\.\d{6})s")


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a clip are shown."""

    most: int = 8
    """Frames of a clip, spread evenly over it."""

    per_second: float | None = None
    """Frames a second of the clip instead, as long as these are no more."""

    as_strip: bool = False
    """Whether a clip is one input, in the model's own way, rather than an image for each frame."""


@dataclass(frozen=True)
class FrameName:
    """One of the frames that are shown of a clip."""

    clip: str
    number: int
    """From 1."""

    count: int
    """Of all frames that are shown of the clip."""

    per_second: float | None = None
    """How many a second; none: they are spread evenly over the whole."""

    def __str__(self) -> str:
        rate = "" if self.per_second is None else f"@{float(self.per_second)}"
        return f"{self.clip}#{self.number}of{self.count}{rate}"


@dataclass(frozen=True)
class FrameStrip:
    """Frames of a clip one below the other, from its first, a fixed time apart."""

    clip: str
    count: int
    seconds: float
    """From one frame to the next."""

    def __str__(self) -> str:
        return f"{self.clip}#{self.count}x{self.seconds:.6f}s"


def parse_strip(path: str | Path) -> FrameStrip | None:
    """Read a strip's name; none: it is the name of something else."""
    found = _STRIP.fullmatch(str(path)) if "#" in str(path) else None
    return FrameStrip(found[1], int(found[2]), float(found[3])) if found else None


def parse_frame(path: str | Path) -> FrameName | None:
    """Read a frame's name; none: it is the name of a file."""
    found = _NAME.fullmatch(str(path)) if "#" in str(path) else None
    if found is None:
        return None
    clip, number, count, rate = found.groups()
    return FrameName(clip, int(number), int(count), float(rate) if rate else None)


def parse_shown(path: str | Path) -> FrameName | FrameStrip | None:
    """Read the name of what is shown of a clip; none: it is the name of a file."""
    return parse_frame(path) or parse_strip(path)


def file_of(path: Path) -> Path:
    """Name the file that an image is read from: its own, or its clip's."""
    shown = parse_shown(path)
    return Path(shown.clip) if shown else path


def names_clip(path: str | Path) -> bool:
    """Tell whether a file's name ends as those of clips do."""
    return Path(path).suffix.lower() in CLIP_ENDINGS


def name_frames(clip: Path, count: int, per_second: float | None = None) -> list[Path]:
    """Name the frames that are shown of a clip, in order."""
    return [
        Path(str(FrameName(str(clip), number, count, per_second))) for number in range(1, count + 1)
    ]
