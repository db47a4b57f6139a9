"""What images and clips have in common: how large one may be, and why a decoder gave up."""

from foveal.errors import DataError, one_line

MAX_PIXELS = 178_956_970
"""Most pixels of an image, width x height: where Pillow itself takes it for a bomb."""


class TooManyPixelsError(DataError):
    """An image, or the frames of a clip, would take too much memory to decode."""


def check_pixels(name: object, width: int, height: int) -> None:
    """Refuse what has no pixels, or too many.

    Raises:
        DataError: it does.
    """
    if not width or not height:
        raise DataError(f"{name}: {width}x{height} has no pixels; replace it")
    if width * height > MAX_PIXELS:
        raise TooManyPixelsError(
            f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels; make it smaller"
        )


def reason_of(error: Exception) -> str:
    """Say in one line why a decoder gave up."""
    # Without a path, which is said before.
    return one_line(getattr(error, "strerror", None) or error)
