#!/usr/bin/env bash
# transformers' load_video finds no frames in any WebM or Matroska file through PyAV.
#
# Guessed:  backend="pyav" reads eight frames of a WebM clip, as the other backends do.
# Happens:  it refuses: "the requested number of frames exceeds total_num_frames=0"; so for fps=1. The same
#           stream in MP4 is read, and so is this file by backend="opencv".
# Why:      transformers/video_utils.py, read_video_pyav: the number of frames is stream.frames, which FFmpeg
#           leaves at 0 for containers that do not store it (WebM, Matroska, FLV, MPEG-TS).
# Matters:  PyAV is what is left where torchcodec's and decord's libraries do not load.
# Versions: transformers 5.23.0, av 18.1.0, opencv-python-headless 5.0.0.93.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" transformers==5.23.0 opencv-python-headless==5.0.0.93 av==18.1.0 \
    numpy==2.4.6 pillow==13.0.0 requests==2.34.2

python - <<'PYTHON'
import sys

from numbered_frames import number, write
from transformers.video_utils import load_video

write("clip.webm", "libvpx-vp9", range(0, 4000, 40))
write("clip.mp4", "libx264", range(0, 4000, 40))


def load(name, backend, **choice):
    try:
        return [number(one) for one in load_video(name, backend=backend, **choice)[0]]
    except ValueError as error:
        return str(error)


seen = {
    "mp4 pyav": load("clip.mp4", "pyav", num_frames=8),
    "webm opencv": load("clip.webm", "opencv", num_frames=8),
    "webm pyav": load("clip.webm", "pyav", num_frames=8),
    "webm pyav, one a second": load("clip.webm", "pyav", fps=1),
}
for name, what in seen.items():
    print(f"{name}: {what}")
eight = [0, 12, 25, 37, 50, 62, 75, 87]
read, refused = list(seen.values())[:2], list(seen.values())[2:]
sys.exit(read != [eight, eight] or not all("total_num_frames=0" in str(one) for one in refused))
PYTHON
