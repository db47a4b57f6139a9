"""A clip -> frames of it by place or by time, as RGB and upright, whatever its header says."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image

from foveal.data.images.archives import open_stored, state_of
from foveal.data.images.decoding import check_pixels, reason_of
from foveal.data.images.frames import FrameChoice, FrameName, FrameStrip, name_frames
from foveal.data.images.objects import called
from foveal.errors import DataError

MAX_FRAMES = 1_000_000
"""Most frames of a clip: eleven hours at 25 a second."""

REMEMBERED_CLIPS = 2
"""Clips whose frames stay decoded: those of one clip are opened one after the other."""

SAME_TIME_SECONDS = 1e-3
"""Times that are no further apart are one: containers round them to milliseconds."""

# A playlist may name any other file, so kinds that are lists are not on this one.
_CLIP_OPTIONS = {"format_whitelist": "avi,mov,matroska,webm,mpeg,mpegvideo,mpegts,flv,asf,ogg,gif"}

_UPRIGHT = {  # degrees against the clock that a clip says its frames are to be turned by
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}

Read = TypeVar("Read")


def frame_indices(total_frames: int, num_frames: int = 8) -> list[int]:
    """Spread `num_frames` over a clip, floor(k * total / num); a short clip repeats frames."""
    if total_frames < 1 or num_frames < 1:
        raise ValueError(f"no frames to take {num_frames} of {total_frames} from")
    return [k * total_frames // num_frames for k in range(num_frames)]


def choose_frames(clip: Path, choice: FrameChoice) -> list[Path]:
    """Name the frames that are shown of a clip, or their strip; nothing is decoded.

    Raises:
        DataError: frames are to be taken by time, and the clip cannot be read or tells none.
    """
    rate = choice.per_second
    seconds = clip_seconds(clip) if choice.as_strip or rate is not None else 0.0
    # A frame at 0 s, and one each 1 / rate until the clip ends; or spread evenly.
    count = choice.most if rate is None else math.ceil(seconds * rate - SAME_TIME_SECONDS)
    if count > choice.most:
        count, rate = choice.most, None
    if not choice.as_strip:
        return name_frames(clip, max(count, 1), rate)
    count = max(count, 2)  # models put two and two together
    # Cut off, not rounded: no frame may be looked for behind the time at which it is seen.
    apart = 1 / rate if rate else max(math.floor(seconds / count * 1e6), 1) / 1e6
    return [Path(str(FrameStrip(str(clip), count, apart)))]


def open_shown(shown: FrameName | FrameStrip) -> Image.Image:
    """Open a frame of a clip, or a strip of them: each as it is seen at its time.

    Raises:
        DataError: there is no such file, or it is no clip, broken, too large or too long.
    """
    clip = Path(shown.clip)
    if isinstance(shown, FrameName):
        with _one_at_a_time:
            frames = _shown_frames(clip, _stamp(clip), shown.count, shown.per_second)
        return frames[shown.number - 1].copy()
    times = [number * shown.seconds for number in range(shown.count)]
    frames = _of_one_size(_reading(clip, lambda file: decode_at(file, clip, times)))
    width, height = frames[0].size
    strip = Image.new("RGB", (width, height * len(frames)))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * height))
    return strip


def shown_size(shown: FrameName | FrameStrip) -> tuple[int, int]:
    """Read (width, height) of an upright frame, or a strip of them, from the first of its clip."""
    width, height = _clip_size(Path(shown.clip), _stamp(Path(shown.clip)))
    return width, height * (shown.count if isinstance(shown, FrameStrip) else 1)


def clip_seconds(clip: Path) -> float:
    """Work out how long a clip lasts from the times of its frames, undecoded.

    Its header may say anything; so may its rate.

    Raises:
        DataError: it cannot be read, or its frames have no times.
    """
    return _clip_seconds(clip, _stamp(clip))


def read_frames(path: Path, num_frames: int = 8) -> list[Image.Image]:
    """Read frames spread evenly over a clip, as RGB.

    Raises:
        DataError: there is no such file, or it is no clip, broken, too large or too long.
    """
    return _reading(path, lambda file: decode_frames(file, path, num_frames))


def decode_frames(source: BinaryIO, name: object, num_frames: int) -> list[Image.Image]:
    """Read frames from a file or from bytes in memory; an error calls it `name`."""
    # The header's count may lie; believed first, it spares honest clips a second pass.
    frames, total, claimed = _take_frames(source, name, None, num_frames)
    if total != claimed:
        source.seek(0)
        frames, total, _ = _take_frames(source, name, total, num_frames)
    return [frames[index] for index in frame_indices(total, num_frames)]


def decode_at(source: BinaryIO, name: object, seconds: Sequence[float]) -> list[Image.Image]:
    """Read the frames that are seen at some times, counted from the first frame.

    Args:
        source: a file, or bytes in memory.
        name: what an error calls it.
        seconds: in order; behind the last frame it is still seen.

    Raises:
        DataError: it cannot be read, or its frames have no times.
    """
    found: list[Image.Image] = []
    seen, start = None, 0.0
    with _opened(source, name) as (clip, stream):
        for frame in _decoded(clip, stream, name):
            if frame.time is None:
                raise DataError(f"{name}: {_NO_TIMES}")
            start = frame.time if seen is None else start
            while seen is not None and len(found) < len(seconds):
                if seconds[len(found)] > frame.time - start - SAME_TIME_SECONDS:
                    break
                found.append(_upright(seen))
            seen = frame
            if len(found) == len(seconds):
                return found
        if seen is None:
            raise DataError(f"{name}: {_EMPTY}")
        last = _upright(seen)
    return found + [last] * (len(seconds) - len(found))


@contextmanager
def decoding_within(seconds: float) -> Iterator[None]:
    """Give up on a clip inside whose frames take longer to decode, each time they are."""
    token = _most_seconds.set(seconds)
    try:
        yield
    finally:
        _most_seconds.reset(token)


_most_seconds = ContextVar("_most_seconds", default=math.inf)

_EMPTY = "a clip without frames; leave it out"
_NO_TIMES = "its frames have no times; leave data.frames_per_second and data.clips out"

_one_at_a_time = threading.Lock()
"""Threads that open frames of one clip are to decode it once."""


@lru_cache(REMEMBERED_CLIPS)
def _shown_frames(
    clip: Path, stamp: tuple[int, ...], count: int, per_second: float | None
) -> tuple[Image.Image, ...]:
    if per_second is None:
        return _of_one_size(read_frames(clip, count))
    times = [number / per_second for number in range(count)]
    return _of_one_size(_reading(clip, lambda file: decode_at(file, clip, times)))


def _of_one_size(frames: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """Give all frames the size of the first, by which the clip is known: calls change theirs."""
    size = frames[0].size
    return tuple(frame if frame.size == size else frame.resize(size) for frame in frames)


@lru_cache(4096)
def _clip_size(clip: Path, stamp: tuple[int, ...]) -> tuple[int, int]:
    def first(file: BinaryIO) -> tuple[int, int]:
        with _opened(file, clip) as (container, stream):
            for frame in _decoded(container, stream, clip):
                turned = round(frame.rotation) % 180 == 90
                return (frame.height, frame.width) if turned else (frame.width, frame.height)
        raise DataError(f"{clip}: {_EMPTY}")

    return _reading(clip, first)


@lru_cache(4096)
def _clip_seconds(clip: Path, stamp: tuple[int, ...]) -> float:
    def last_end(file: BinaryIO) -> float:
        starts: list[int] = []
        end = 0
        with _opened(file, clip) as (container, stream):
            for packet in container.demux(stream):
                at = packet.dts if packet.pts is None else packet.pts
                # A clip cut between key frames keeps those before the cut, and says to hide them.
                if at is not None and packet.size and not packet.is_discard:
                    starts.append(at)
                    end = max(end, at + (packet.duration or 0))
            unit = stream.time_base
        if not starts or unit is None:
            raise DataError(f"{clip}: {_NO_TIMES}")
        starts.sort()
        # Where the last frame says no duration, it is seen as long as the one before.
        shown = starts[-1] - starts[-2] if len(starts) > 1 else 0
        return float((max(end, starts[-1] + shown) - starts[0]) * unit)

    return _reading(clip, last_end)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        return tuple(state_of(path))
    except OSError as error:
        raise DataError(f"{called(path)}: {error.strerror}; give a clip's path") from error


def _reading(path: Path, read: Callable[[BinaryIO], Read]) -> Read:
    try:
        # An open file, not a name: FFmpeg reads "a:b.avi" as an address.
        with open_stored(path) as file:
            return read(file)
    except OSError as error:
        raise DataError(f"{called(path)}: {error.strerror or error}; give a clip's path") from error


@contextmanager
def _opened(source: BinaryIO, name: object) -> Iterator[tuple[Any, Any]]:
    """Open a clip and find its moving image; whatever goes wrong inside is a broken clip."""
    import av

    try:
        with av.open(source, "r", options=_CLIP_OPTIONS, metadata_errors="replace") as clip:
            if not clip.streams.video:
                raise DataError(f"{name}: no moving picture in it; leave it out")
            stream = clip.streams.video[0]
            check_pixels(name, stream.codec_context.width, stream.codec_context.height)
            yield clip, stream
    except DataError:
        raise
    except Exception as error:  # decoders of broken bytes raise whatever they like
        raise DataError(f"{name}: broken clip ({reason_of(error)}); replace it") from error


def _decoded(clip: Any, stream: Any, name: object) -> Iterator[Any]:
    most_seconds = _most_seconds.get()
    start = time.monotonic()
    for number, frame in enumerate(clip.decode(stream), start=1):
        check_pixels(name, frame.width, frame.height)  # each may be of another size
        yield frame
        if number > MAX_FRAMES:
            raise DataError(f"{name}: more than {MAX_FRAMES} frames; cut it")
        if time.monotonic() - start > most_seconds:
            raise DataError(f"{name}: more than {most_seconds:g} seconds to decode; cut it")


def _upright(frame: Any) -> Image.Image:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = _UPRIGHT.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def _take_frames(
    source: BinaryIO, name: object, expected: int | None, num_frames: int
) -> tuple[dict[int, Image.Image], int, int]:
    """Decode a whole clip: chosen frames by index, how many there are, how many the header says."""
    taken: dict[int, Image.Image] = {}
    total = 0
    with _opened(source, name) as (clip, stream):
        claimed = stream.frames
        expected = claimed if expected is None else expected
        wanted = set(frame_indices(expected, num_frames)) if expected > 0 else set()
        for frame in _decoded(clip, stream, name):
            if total in wanted:
                taken[total] = _upright(frame)
            total += 1
    if not total:
        raise DataError(f"{name}: {_EMPTY}")
    return taken, total, claimed
