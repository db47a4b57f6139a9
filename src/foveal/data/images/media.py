"""A file with an image -> an RGB image, its size and its identity, opened safely."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import file_digest
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from PIL import ExifTags, Image, UnidentifiedImageError

from foveal.data.images.archives import open_stored
from foveal.data.images.clips import open_shown, shown_size
from foveal.data.images.decoding import MAX_PIXELS, TooManyPixelsError, check_pixels, reason_of
from foveal.data.images.frames import names_clip, parse_shown
from foveal.data.images.objects import HEADER_BYTES, called
from foveal.errors import DataError, StoreError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Kinds of images that are opened; others are refused unread (EPS would start a program)."""

_OTHERS = {
    b"git-lfs": "a pointer of Git LFS, not the picture; bring it here: git lfs pull",
    b"<html": "a web page, not a picture; fetch the picture itself",
    b"<!doctype html": "a web page, not a picture; fetch the picture itself",
    b"<svg": "an SVG drawing; draw it as {}",
    b"%pdf": "a PDF; draw its pages as {}",
    b"ftyphei": "a HEIC picture; save it as {}",
    b"ftypmif1": "a HEIC picture; save it as {}",
    b"8bps": "a Photoshop file; save it as {}",
}
"""What often stands where an image should: what it begins with -> what it is, what to do."""

_TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


ImageInput: TypeAlias = str | Path | bytes | Image.Image
"""A file, what a file holds, or a Pillow image."""


def load_image(given: ImageInput, name: object) -> Image.Image:
    """Open an image, however it is given, as RGB and upright: the same pixels by every way.

    Args:
        given: to open; a Pillow image stays as it is.
        name: what an error calls it; a file is called by its path.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(given, str | Path):
        return open_image(Path(given))
    if isinstance(given, bytes):
        return _decoded(BytesIO(given), name)
    if not isinstance(given, Image.Image):
        kind = type(given).__name__
        raise DataError(f"{name}: give a path, a Pillow image or bytes, not {kind}")
    check_pixels(name, *given.size)
    with _quiet:
        return _upright_rgb(given, name)


def names_image(word: str) -> bool:
    """Tell whether a word is the name of a file, or ends as those of images do."""
    name = Path(word).name.lower()
    ends_so = Path(name).suffix in Image.registered_extensions() or names_clip(name)
    return os.path.isfile(word) or (len(word.split()) == 1 and ends_so)


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Put the name of an image before what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def open_image(path: Path) -> Image.Image:
    """Open an image as RGB, upright, the first frame of an animated one; or what a clip shows.

    Raises:
        DataError: there is no such file, or it is no image, cut short, or too large.
    """
    if shown := parse_shown(path):
        return open_shown(shown)
    return _decoded(path, called(path))


def _decoded(source: Path | BinaryIO, name: object) -> Image.Image:
    with _header(source, name) as image:
        return _upright_rgb(image, name)


def _upright_rgb(image: Image.Image, name: object) -> Image.Image:
    try:
        if image.format == "TIFF":
            image.load()  # Pillow turns it upright by itself, and then says no more of it
        turn = _TURNS.get(_orientation(image))
        # Not in JPEG's draft mode: it halves in blocks, where the reference resizes pixels.
        image.load()
        rgb = to_rgb(image)
    except StoreError:
        raise
    except Exception as error:  # decoders of broken bytes raise whatever they like
        raise DataError(f"{name}: broken picture ({reason_of(error)}); replace it") from error
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info.clear()  # what it says of up and down has been done: once is enough
    return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB.

    Equal to `image.convert("RGB")`, except for 16-bit grey: its high byte is kept, as Pillow
    does for 16-bit colour, where Pillow would clip it to white. An alpha channel is dropped, not
    blended; floats count as 0 to 255.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        import numpy

        high = numpy.asarray(image).astype(numpy.int64).clip(0, 65535) >> 8
        image = Image.fromarray(high.astype(numpy.uint8))
    elif image.mode == "P":
        # One transparent entry per colour cannot be kept in RGB and Pillow would warn of it.
        image = image.copy()
        image.info.pop("transparency", None)
    return image.convert("RGB")


def shows_one_colour(image: Image.Image) -> bool:
    """Tell whether every pixel of an image is the same."""
    few = image.resize((32, 32), Image.Resampling.NEAREST)  # most images differ in these
    return _one_colour(few) and _one_colour(image)


def _one_colour(image: Image.Image) -> bool:
    extrema: Any = image.getextrema()  # of RGB: darkest and brightest of each channel
    return all(darkest == brightest for darkest, brightest in extrema)


def image_size(given: Path | bytes, name: object = None) -> tuple[int, int]:
    """Read (width, height) of the upright image from its header alone.

    Args:
        given: a file, what is shown of a clip, or what a file holds.
        name: what an error calls the latter.

    Raises:
        DataError: there is no such file, or it is no image or too large.
    """
    source: Path | BinaryIO
    if isinstance(given, bytes):
        source = BytesIO(given)
    elif shown := parse_shown(given):
        return shown_size(shown)
    else:
        source, name = given, called(given)
    with _header(source, name, alone=True) as image:
        if _orientation(image) in (5, 6, 7, 8) and image.format != "TIFF":
            return image.height, image.width
        return image.width, image.height


def image_identity(path: Path) -> str:
    """Name the content of a file: equal for equal bytes, whatever the file is called.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open_stored(path) as file:
            return file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise DataError(f"{called(path)}: {error.strerror}") from error


class _Quiet:
    """Hides Pillow's warnings while any thread is inside; the last one out ends it.

    `warnings.catch_warnings` alone would leave the filters wrong where two threads overlap.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._hidden = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._hidden = warnings.catch_warnings()
                self._hidden.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._hidden.__exit__(None, None, None)


_quiet = _Quiet()


@contextmanager
def _header(source: Path | BinaryIO, name: object, alone: bool = False) -> Iterator[Image.Image]:
    """Open an image as far as its header, undecoded; nothing else is read of it, if `alone`."""
    with ExitStack() as opened, _quiet:
        try:
            if isinstance(source, Path):
                file = opened.enter_context(open_stored(source, HEADER_BYTES if alone else None))
            else:
                file = source
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise DataError(f"{name}: {_why_no_image(file)}") from error
        except Image.DecompressionBombError as error:
            raise TooManyPixelsError(
                f"{name}: more than {MAX_PIXELS} pixels; make it smaller"
            ) from error
        except (DataError, StoreError):
            raise
        except Exception as error:  # decoders of broken bytes raise whatever they like
            if isinstance(error, OSError) and error.errno:
                raise DataError(f"{name}: {reason_of(error)}; give a picture's path") from error
            raise DataError(f"{name}: broken picture ({reason_of(error)}); replace it") from error
        with image:
            check_pixels(name, *image.size)
            yield image


def _why_no_image(file: BinaryIO) -> str:
    file.seek(0)
    begin = file.read(512)
    if not begin:
        return "an empty file; replace it"
    kinds = f"a kind we open ({', '.join(FORMATS)})"
    for sign, what in _OTHERS.items():
        if sign in begin.lower():
            return what.format(kinds)
    return f"not a picture of {kinds}; save it as one of them"


def _orientation(image: Image.Image) -> int:
    """Read which way is up, from the header alone; 1 where nothing is said."""
    # Not image.getexif(): that of PNG decodes the image to look for EXIF behind it.
    try:
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except StoreError:
        raise
    except Exception:  # broken metadata must not cost a sound image
        return 1
