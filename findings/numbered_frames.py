"""Clips whose frames say which they are: frame k shows the binary digits of k as eight bars."""

from fractions import Fraction

import av
import numpy as np

BITS, WIDTH, HEIGHT = 8, 128, 64


def picture(number):
    """Draw the frame of a number below 256; returns (height, width, 3), uint8."""
    bars = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8)
    row = np.repeat(bars, WIDTH // BITS)[None, :, None]
    return np.ascontiguousarray(np.broadcast_to(row, (HEIGHT, WIDTH, 3)))


def number(pixels):
    """Read a frame's number, of (height, width, 3)."""
    bars = np.asarray(pixels).reshape(HEIGHT, BITS, -1)[:, :, 12:-12].mean((0, 2))
    return sum(int(bar > 128) << bit for bit, bar in enumerate(bars))


def write(name, codec, milliseconds, b_frames=0):
    """Write one frame at each time."""
    with av.open(name, "w") as clip:
        stream = clip.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.max_b_frames = b_frames
        for place, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(picture(place), format="rgb24")
            if codec != "mpeg4":
                frame.pts, frame.time_base = time, Fraction(1, 1000)
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode())


def mpeg4(name, b_frames):
    """Write a hundred frames at 25 a second as MPEG-4."""
    write(name, "mpeg4", range(0, 4000, 40), b_frames)
