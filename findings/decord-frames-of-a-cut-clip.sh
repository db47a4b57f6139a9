#!/usr/bin/env bash
# decord2 runs a clip that was cut without encoding it anew partly backwards.
#
# Guessed:  of a clip cut with `ffmpeg -ss 1 -c copy` every reader shows the 75 frames behind the cut.
# Happens:  PyAV and OpenCV show them. decord2 says that there are 100; of every ninth, those before 50 lie 25 frames
#           further on than asked for, and from 50 on none: after 70 comes 54. OpenCV too says 100 before it gives 75.
# Why:      a cut between key frames keeps the frames since the last key frame and hides them by an edit list.
#           FFmpeg's decoder drops them, while decord2's index (src/video/video_reader.cc, IndexKeyframes) counts every
#           packet: it goes to the last key frame and skips frames that come out, 25 too few behind the first.
# Matters:  clips of action and moment data sets are cut so; evenly spread frames come twice and out of order. Who counts
#           by OpenCV (transformers' loader does) asks for frames behind the last.
# Versions: decord2 3.4.0, av 18.1.0, opencv-python-headless 5.0.0.93, imageio-ffmpeg 0.8.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" \
  decord2==3.4.0 av==18.1.0 opencv-python-headless==5.0.0.93 imageio-ffmpeg==0.8.1 numpy==2.4.6

python - <<'PYTHON'
import subprocess
import sys

import av
import cv2
import decord
import imageio_ffmpeg
import numpy as np

with av.open("whole.mp4", "w") as clip:
    stream = clip.add_stream("libx264", rate=25)
    stream.width = stream.height = 64
    stream.pix_fmt, stream.options = "yuv420p", {"g": "50", "sc_threshold": "0"}
    for number in range(100):  # a frame's grey is its number
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 30 + 2 * number, np.uint8), format="rgb24")
        clip.mux(stream.encode(frame))
    clip.mux(stream.encode())
tool = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
subprocess.run([*tool, "-ss", "1", "-i", "whole.mp4", "-c", "copy", "cut.mp4"], check=True)


def number(frame):
    return (float(np.mean(frame)) - 30) / 2  # to a frame, as colours are rounded


with av.open("cut.mp4") as clip:
    by_pyav = [number(frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]
reader = decord.VideoReader("cut.mp4")
asked = list(range(0, len(reader), 9))
by_decord = [number(frame) for frame in reader.get_batch(asked).asnumpy()]
capture, by_opencv = cv2.VideoCapture("cut.mp4"), []
header = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
while (read := capture.read())[0]:
    by_opencv.append(number(read[1]))

print(f"PyAV: {len(by_pyav)} frames, {by_pyav[0]:.0f} to {by_pyav[-1]:.0f}")
print(f"OpenCV: {header} by its count, {len(by_opencv)} read, {by_opencv[0]:.0f} to {by_opencv[-1]:.0f}")
print(f"decord2: {len(reader)} frames, every ninth:", *(f"{one:.0f}" for one in by_decord))


def are(found, wanted):
    return len(found) == len(wanted) and np.abs(np.subtract(found, wanted)).max() < 1.5


as_told = (
    are(by_pyav, range(25, 100))
    and are(by_opencv, range(25, 100))
    and len(reader) == header == 100
    and are(by_decord, [k + 25 if k < 50 else k for k in asked])
)
sys.exit(not as_told)
PYTHON
