"""A request's body -> JSON, and files from it or from addresses: what is shown, within limits."""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL.Image import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from foveal.data.images.clips import choose_frames, decoding_within
from foveal.data.images.decoding import TooManyPixelsError
from foveal.data.images.frames import FrameChoice, file_of
from foveal.data.images.media import (
    image_size,
    load_image,
)
from foveal.errors import DataError
from foveal.serve.limits import RequestError, ServerLimits

DISCARDED = 4
"""Times the limit of a body that is read and thrown away, so that a client hears why."""

REQUEST_FIELD, IMAGE_FIELD, CLIP_FIELD = "request", "image", "video"

Fetch = Callable[[str], bytes]
"""Web address -> bytes; raises `RequestError`."""


@dataclass(frozen=True)
class SentFile:
    """An image or a whole clip as it came in, or what is shown of a clip; not yet decoded."""

    name: str
    """What an error calls it."""

    data: bytes
    is_clip: bool = False
    frame: Path | None = None
    """Of a clip: a frame, or all of them as one strip, as the data walk names it."""

    @property
    def path(self) -> Path:
        """Tells the data walk what is shown of clips; an image has none."""
        return self.frame or Path()

    @cached_property
    def identity(self) -> str:
        """Equal for equal bytes."""
        return self.frame.name if self.frame else sha256(self.data).hexdigest()

    def measure(self) -> tuple[int, int]:
        """Read width and height of the upright image from its header.

        Raises:
            RequestError: it is no image.
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
            return load_image(self.frame or self.data, self.name)


def name_next(files: Iterable[SentFile], is_clip: bool) -> str:
    """Name the file behind some others by its kind and number, for errors."""
    number = 1 + sum(one.is_clip == is_clip for one in files)
    return f"{'clip' if is_clip else 'picture'} {number}"


@dataclass(frozen=True)
class Body:
    """What a request brought."""

    request: bytes | str
    """JSON."""

    files: tuple[SentFile, ...] = ()


async def read_body(request: Request, limits: ServerLimits) -> Body:
    """Read a request as JSON, or as a form of one JSON field and images.

    Raises:
        RequestError: too large, too slow, or neither of the two.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        await discard(request, limits)
        raise RequestError(
            415, "send application/json, or multipart/form-data with pictures", "bad_content_type"
        )
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == "multipart/form-data":
                return await _read_form(request, limits)
            return Body(b"".join([chunk async for chunk in _chunks(request, limits)]))
    except TimeoutError:
        raise RequestError(
            408, f"the body took longer than {limits.body_seconds:g} seconds", "too_slow"
        ) from None


async def discard(request: Request, limits: ServerLimits) -> None:
    """Read a refused body away: a client that still sends would not hear the answer."""
    with suppress(RequestError, TimeoutError, ClientDisconnect):
        async with asyncio.timeout(limits.body_seconds):
            async for _ in _chunks(request, limits):
                pass


async def _chunks(request: Request, limits: ServerLimits) -> AsyncGenerator[bytes, None]:
    """Pass a body on as it comes; one that is too large is read away up to a point."""
    most, stated = DISCARDED * limits.body_bytes, request.headers.get("content-length", "0")
    size = int(stated) if stated.isdecimal() else 0
    read = 0
    if size <= most:
        async for chunk in request.stream():
            read += len(chunk)
            size = max(size, read)
            if size <= limits.body_bytes:
                yield chunk
            elif read > most:
                break
    if size > limits.body_bytes:
        raise RequestError(
            413, f"the body has more than {limits.body_bytes} bytes; send less", "body_too_large"
        )


async def _read_form(request: Request, limits: ServerLimits) -> Body:
    parser = MultiPartParser(
        request.headers,
        _chunks(request, limits),
        max_files=limits.images,
        max_fields=1,
        max_part_size=limits.body_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, f"the form is broken: {error.message}", "bad_form") from error
    asked: str | None = None
    files: list[SentFile] = []
    try:
        for field, value in form.multi_items():
            if isinstance(value, UploadFile) and field in (IMAGE_FIELD, CLIP_FIELD):
                is_clip = field == CLIP_FIELD
                name = f"{name_next(files, is_clip)} ({(value.filename or 'unnamed')[:80]})"
                files.append(checked(SentFile(name, await value.read(), is_clip), limits))
            elif isinstance(value, str) and field == REQUEST_FIELD:
                asked = value
            else:
                raise RequestError(
                    400,
                    f"the form has a field {field[:40]!r}; {REQUEST_FIELD!r} holds the JSON and "
                    f"each {IMAGE_FIELD!r} a file with a picture, each {CLIP_FIELD!r} a clip",
                    "bad_form",
                )
    finally:
        await form.close()
    if asked is None:
        raise RequestError(
            400, f"the form has no field {REQUEST_FIELD!r} with the JSON", "bad_form"
        )
    return Body(asked, tuple(files))


Show = Callable[[SentFile], list[SentFile]]
"""An image -> itself; a clip -> its frames, or the one strip of them; raises `RequestError`."""


@contextmanager
def showing(choice: FrameChoice, limits: ServerLimits) -> Iterator[Show]:
    """Make what finds the frames that are shown of a clip, as training does; they live inside."""
    with ExitStack() as opened, decoding_within(limits.clip_seconds):

        def show(clip: SentFile) -> list[SentFile]:
            if not clip.is_clip:
                return [clip]
            folder = opened.enter_context(TemporaryDirectory(prefix="foveal-"))
            file = Path(folder) / clip.identity
            file.write_bytes(clip.data)
            with _refused(clip.name, file):
                frames = choose_frames(file, choice)
            return [SentFile(clip.name, b"", frame=frame) for frame in frames]

        yield show


def read_address(
    url: str, name: str, is_clip: bool, *, limits: ServerLimits, fetch: Fetch | None
) -> SentFile:
    """Read an image or a clip from where a request says it is.

    Args:
        url: a data URI or a web address.
        name: what an error calls it.
        is_clip: whether it is a clip.
        limits: of the endpoint.
        fetch: how to get a web address; none: they are refused.

    Raises:
        RequestError: it is nowhere, not allowed, or too large.
    """
    kind, colon, rest = url.partition(":")
    if colon and kind.lower() == "data":
        data = _decode_data_uri(rest, name)
    elif not colon or kind.lower() not in ("http", "https"):
        raise RequestError(
            400, f"{name}: its url begins with data: or https:, not {kind[:20]!r}", "bad_url"
        )
    elif fetch is None:
        raise RequestError(
            400,
            f"{name}: this server fetches no web addresses; send the file itself, as "
            "data:image/png;base64,... or data:video/mp4;base64,..., or as an upload",
            "web_address_refused",
        )
    else:
        data = fetch(url)
    return checked(SentFile(name, data, is_clip), limits)


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
    if len(file.data) > limits.image_bytes:
        raise RequestError(
            413,
            f"{file.name}: more than {limits.image_bytes} bytes; make it smaller",
            "picture_too_large",
        )
    return file


def measure_images(images: Sequence[SentFile], limits: ServerLimits) -> list[tuple[int, int]]:
    """Read (width, height) of images from their headers, before any is decoded.

    Raises:
        RequestError: one is no image, or all together have too many pixels.
    """
    sizes: list[tuple[int, int]] = []
    pixels = 0
    for image in images:
        size = image.measure()
        pixels += size[0] * size[1]
        if pixels > limits.pixels:
            raise RequestError(
                413,
                f"{image.name}: {size[0]}x{size[1]} takes the request to {pixels} pixels, more "
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
