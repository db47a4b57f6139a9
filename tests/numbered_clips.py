"""Clips of frames that show their own numbers."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy
from PIL import Image

BITS, WIDTH, HEIGHT, TOTAL = 8, 128, 64, 100
STEADY = [40 * place for place in range(TOTAL)]
SLOWING = [40 * place for place in range(50)] + [2000 + 1000 * place for place in range(50)]

CONTAINERS = [
    # decord2 3.4.0 gives frames 0, 2, 3, 15, 28 ... of these two (IndexKeyframes in its
    # video_reader.cc goes by presentation times, which AVI does not have),
    (".avi", "mpeg4", 2),
    (".mov", "mpeg4", 2),
    # and of these two, even in order, none before their second key frame.
    (".ts", "libx264", 2),
    (".mpg", "mpeg2video", 2),
    # Their headers hold no number of frames: transformers 5.23.0, read_video_pyav, refuses.
    (".webm", "libvpx-vp9", None),
    (".mkv", "libx264", None),
    (".flv", "libx264", 2),
    (".mp4", "libx264", None),
    (".gif", "gif", None),
]
"""Ending, codec, frames that hang on a later one: what people have, and what other readers get
wrong of it."""


def write_clip(
    path: Path, codec: str, milliseconds: Iterable[int] = STEADY, b_frames: int | None = None
) -> None:
    """Write frames of which each shows the binary digits of its place as eight bars."""
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream(codec, rate=25)
        stream.width, stream.height, stream.bit_rate = WIDTH, HEIGHT, 4_000_000
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for place, time in enumerate(milliseconds):
            bars = numpy.array([255 * (place >> bit & 1) for bit in range(BITS)], numpy.uint8)
            row = numpy.repeat(bars, WIDTH // BITS)[None, :, None]
            pixels = numpy.ascontiguousarray(numpy.broadcast_to(row, (HEIGHT, WIDTH, 3)))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if b_frames is None:
                frame.pts, frame.time_base = time, Fraction(1, 1000)
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode())


def cut_clip(whole: Path, cut: Path, seconds: float) -> None:
    """Cut the beginning off as `ffmpeg -ss SECONDS -c copy` does: its frames stay, hidden."""
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts -= int(seconds / stream.time_base)
                packet.dts -= int(seconds / stream.time_base)
                packet.stream = copied
                target.mux(packet)


def number_shown(frame: Image.Image) -> int:
    bars = numpy.asarray(frame).reshape(HEIGHT, BITS, -1)[:, :, 12:-12].mean((0, 2))
    return sum(int(bar > 128) << bit for bit, bar in enumerate(bars))
