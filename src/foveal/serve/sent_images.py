"""Data URIs, uploads and web addresses -> the bytes of pictures, and their sizes, within limits."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

from PIL.Image import Image

from foveal.data.media import TooManyPixelsError, decode_image, measure_image
from foveal.errors import DataError
from foveal.serve.limits import ServerLimits
from foveal.serve.problems import RequestError

Fetch = Callable[[str], bytes]
"""Web address -> bytes; raises `RequestError`."""


@dataclass(frozen=True)
class PictureFile:
    """A picture as it came in, not yet decoded."""

    name: str
    """What an error calls it."""

    data: bytes

    @property
    def identity(self) -> str:
        """Equal for equal bytes."""
        return sha256(self.data).hexdigest()

    def decode(self) -> Image:
        """Open it as RGB.

        Raises:
            RequestError: it is broken.
        """
        try:
            return decode_image(BytesIO(self.data), self.name)
        except DataError as error:
            raise _problem_of(error) from error


def read_address(url: str, name: str, limits: ServerLimits, fetch: Fetch | None) -> PictureFile:
    """Read a picture from where a request says it is.

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
        return checked(PictureFile(name, decode_data_uri(rest, name, limits)), limits)
    if colon and kind.lower() in ("http", "https"):
        if fetch is None:
            raise RequestError(
                400,
                f"{name}: this server fetches no web addresses; send the picture itself, "
                "as data:image/png;base64,... or as an upload",
                "web_address_refused",
            )
        return checked(PictureFile(name, fetch(url)), limits)
    raise RequestError(
        400, f"{name}: a picture's url begins with data: or https:, not {kind[:20]!r}", "bad_url"
    )


def decode_data_uri(rest: str, name: str, limits: ServerLimits) -> bytes:
    """Decode what stands behind `data:`.

    Raises:
        RequestError: it is not base64, or too large.
    """
    about, comma, coded = rest.partition(",")
    if not comma or not about.lower().endswith(";base64"):
        raise RequestError(
            400, f"{name}: write the data URI as data:image/png;base64,...", "bad_url"
        )
    if len(coded) * 3 // 4 > limits.picture_bytes + 2:
        raise _too_many_bytes(name, limits)
    try:
        return base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"{name}: its base64 is broken ({error})", "bad_url") from error


def checked(picture: PictureFile, limits: ServerLimits) -> PictureFile:
    """Refuse a file that is too large.

    Raises:
        RequestError: it is.
    """
    if len(picture.data) > limits.picture_bytes:
        raise _too_many_bytes(picture.name, limits)
    return picture


def _too_many_bytes(name: str, limits: ServerLimits) -> RequestError:
    return RequestError(
        413, f"{name}: more than {limits.picture_bytes} bytes; make it smaller", "picture_too_large"
    )


def measure_images(pictures: Sequence[PictureFile], limits: ServerLimits) -> list[tuple[int, int]]:
    """Read (width, height) of pictures from their headers, before any is decoded.

    Raises:
        RequestError: one is no picture, or all together have too many pixels.
    """
    if len(pictures) > limits.pictures:
        raise RequestError(
            413,
            f"{len(pictures)} pictures are more than {limits.pictures}; send fewer",
            "too_many_pictures",
        )
    sizes: list[tuple[int, int]] = []
    pixels = 0
    for picture in pictures:
        try:
            size = measure_image(BytesIO(picture.data), picture.name)
        except DataError as error:
            raise _problem_of(error) from error
        pixels += size[0] * size[1]
        if pixels > limits.pixels:
            raise RequestError(
                413,
                f"{picture.name}: {size[0]}x{size[1]} takes the request to {pixels} pixels, more "
                f"than {limits.pixels}; make the pictures smaller",
                "too_many_pixels",
            )
        sizes.append(size)
    return sizes


def _problem_of(error: DataError) -> RequestError:
    if isinstance(error, TooManyPixelsError):
        return RequestError(413, str(error), "too_many_pixels")
    return RequestError(400, str(error), "broken_picture")
