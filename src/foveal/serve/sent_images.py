"""Data URIs, uploads and web addresses -> what is shown, and its sizes, within limits."""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL.Image import Image

from foveal.data.images.clips import choose_frames, decoding_within
from foveal.data.images.frames import FrameChoice, file_of
from foveal.data.images.media import (
    TooManyPixelsError,
    image_size,
    open_picture,
)
from foveal.errors import DataError
from foveal.serve.limits import RequestError, ServerLimits

Fetch = Callable[[str], bytes]
"""Web address -> bytes; raises `RequestError`."""


@dataclass(frozen=True)
class SentFile:
    """A picture or a whole clip as it came in, or what is shown of a clip; not yet decoded."""

    name: str
    """What an error calls it."""

    data: bytes
    frame: Path | None = None
    """Of a clip: a frame, or all of them as one strip, as the data walk names it."""

    @property
    def path(self) -> Path:
        """Tells the data walk what is shown of clips; a picture has none."""
        return self.frame or Path()

    @cached_property
    def identity(self) -> str:
        """Equal for equal bytes."""
        return self.frame.name if self.frame else sha256(self.data).hexdigest()

    def measure(self) -> tuple[int, int]:
        """Read width and height of the upright picture from its header.

        Raises:
            RequestError: it is no picture.
        """
        with _refused(self.name, self.frame):
            if self.frame:
                return image_size(self.frame)
            return image_size(self.data, self.name)

    def decode(self) -> Image:
        """Open it as RGB.

        Raises:
            RequestError: it is broken.
        """
        with _refused(self.name, self.frame):
            return open_picture(self.frame or self.data, self.name)


ShowClip = Callable[[SentFile], list[SentFile]]
"""Clip -> its frames, or the one strip of them; raises `RequestError`."""


@contextmanager
def shown_of_clips(choice: FrameChoice, limits: ServerLimits) -> Iterator[ShowClip]:
    """Make what finds the frames that are shown of a clip, as training does; they live inside."""
    with ExitStack() as opened, decoding_within(limits.clip_seconds):

        def show(clip: SentFile) -> list[SentFile]:
            folder = opened.enter_context(TemporaryDirectory(prefix="foveal-"))
            file = Path(folder) / clip.identity
            file.write_bytes(clip.data)
            with _refused(clip.name, file):
                frames = choose_frames(file, choice)
            return [SentFile(clip.name, b"", frame) for frame in frames]

        yield show


def read_address(url: str, name: str, limits: ServerLimits, fetch: Fetch | None) -> SentFile:
    """Read a picture or a clip from where a request says it is.

    Args:
        url: a data URI or a web address.
        name: what an error calls the picture.
        limits: of the endpoint.
        fetch: how to get a web address; none: they are refused.

    Raises:
        RequestError: it is nowhere, not allowed, or too large.
    """
    kind, colon, rest = url.partition(":")
    if colon and kind.lower() == "data":
        return checked(SentFile(name, _decode_data_uri(rest, name)), limits)
    if not colon or kind.lower() not in ("http", "https"):
        raise RequestError(
            400, f"{name}: its url begins with data: or https:, not {kind[:20]!r}", "bad_url"
        )
    if fetch is None:
        raise RequestError(
            400,
            f"{name}: this server fetches no web addresses; send the file itself, as "
            "data:image/png;base64,... or data:video/mp4;base64,..., or as an upload",
            "web_address_refused",
        )
    return checked(SentFile(name, fetch(url)), limits)


def _decode_data_uri(rest: str, name: str) -> bytes:
    about, comma, coded = rest.partition(",")
    if not comma or not about.lower().endswith(";base64"):
        raise RequestError(
            400,
            f"{name}: write the data URI as data:image/png;base64,... or data:video/mp4;base64,...",
            "bad_url",
        )
    try:
        return base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"{name}: its base64 is broken ({error})", "bad_url") from error


def checked(file: SentFile, limits: ServerLimits) -> SentFile:
    """Refuse a file that is too large.

    Raises:
        RequestError: it is.
    """
    if len(file.data) > limits.picture_bytes:
        raise RequestError(
            413,
            f"{file.name}: more than {limits.picture_bytes} bytes; make it smaller",
            "picture_too_large",
        )
    return file


def measure_images(pictures: Sequence[SentFile], limits: ServerLimits) -> list[tuple[int, int]]:
    """Read (width, height) of pictures from their headers, before any is decoded.

    Raises:
        RequestError: one is no picture, or all together have too many pixels.
    """
    sizes: list[tuple[int, int]] = []
    pixels = 0
    for picture in pictures:
        size = picture.measure()
        pixels += size[0] * size[1]
        if pixels > limits.pixels:
            raise RequestError(
                413,
                f"{picture.name}: {size[0]}x{size[1]} takes the request to {pixels} pixels, more "
                f"than {limits.pixels}; make pictures or clips smaller",
                "too_many_pixels",
            )
        sizes.append(size)
    return sizes


@contextmanager
def _refused(name: str, file: Path | None = None) -> Iterator[None]:
    """Refuse what is wrong with data; the file that a clip lies in for now is called `name`."""
    try:
        yield
    except DataError as error:
        said = str(error) if file is None else str(error).replace(str(file_of(file)), name)
        if isinstance(error, TooManyPixelsError):
            raise RequestError(413, said, "too_many_pixels") from error
        raise RequestError(
            400, said, "broken_picture" if file is None else "broken_clip"
        ) from error
