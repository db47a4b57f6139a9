#!/usr/bin/env bash
# decord2 gives other frames of a clip with B-frames by index than it gives in order.
#
# Guessed:  get_batch([0, 12, 25, ...]) gives the frames that reading one after the other gives there.
# Happens:  on MPEG-4 with B-frames in AVI (what Xvid and DivX wrote, and many video sets are) frame 25 is
#           frame 3, frame 50 is frame 28; in MP4 frames up to the second key frame are two late. Read in
#           order all hundred are right, and PyAV gives the right ones. Without B-frames all are right.
# Why:      src/video/video_reader.cc, IndexKeyframes and SkipFramesImpl: frames to skip are named by the
#           presentation times of their packets; AVI has none, and a stream that starts with a delay starts late.
# Matters:  load_video(..., backend="decord") of transformers and readers of qwen-vl-utils choose frames so.
# Versions: decord2 3.4.0, av 18.1.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" decord2==3.4.0 av==18.1.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import av
import decord
from numbered_frames import mpeg4, number

WANTED = [0, 12, 25, 37, 50, 62, 75, 87]


def read(name):
    clip = decord.VideoReader(name, num_threads=1)
    chosen = [number(one) for one in clip.get_batch(WANTED).asnumpy()]
    clip = decord.VideoReader(name, num_threads=1)
    in_order = [number(clip.next().asnumpy()) for _ in range(100)]
    return chosen, in_order == list(range(100))


for name, b_frames in {"b.avi": 2, "b.mp4": 2, "plain.avi": 0}.items():
    mpeg4(name, b_frames)
seen = {name: read(name) for name in ("b.avi", "b.mp4", "plain.avi")}
with av.open("b.avi") as clip:
    shown = [number(one.to_ndarray(format="rgb24")) for one in clip.decode(video=0)]
print("asked for", WANTED)
for name, (chosen, in_order) in seen.items():
    print(f"{name:9} by index {chosen}, in order {'right' if in_order else 'wrong'}")
print("b.avi by PyAV", "right" if shown == list(range(100)) else "wrong")
as_described = (
    seen["b.avi"] == ([0, 2, 3, 15, 28, 52, 71, 83], True)
    and seen["b.mp4"] == ([0, 14, 27, 39, 50, 62, 75, 87], True)
    and seen["plain.avi"] == (WANTED, True)
    and shown == list(range(100))
)
sys.exit(not as_described)
PYTHON
