#!/usr/bin/env bash
# transformers' load_video gives one frame where eight were asked for, and says that it gave eight.
#
# Guessed:  num_frames=8 of a clip of 100 frames gives eight frames, whatever the times between them.
# Happens:  of a Matroska clip whose frame rate varies (a screen recording: two quick seconds, then a frame a
#           second) backend="opencv" gives frame 0 alone; the metadata that comes with it lists eight places
#           up to 1116 of 1276 frames. fps=1 gives 4 frames of a clip of 51 seconds. No warning.
# Why:      transformers/video_utils.py, read_video_opencv: the number of frames is OpenCV's
#           CAP_PROP_FRAME_COUNT, which for Matroska is duration times nominal rate; places behind the true
#           end are passed over, and metadata.frames_indices keeps them.
# Matters:  timestamps in prompts are made of frames_indices, one for each place that was never read.
# Versions: transformers 5.23.0, opencv-python-headless 5.0.0.93, av 18.1.0 (to write the clip).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" transformers==5.23.0 opencv-python-headless==5.0.0.93 av==18.1.0 \
    numpy==2.4.6 pillow==13.0.0 requests==2.34.2

python - <<'PYTHON'
import sys

from numbered_frames import number, write
from transformers.video_utils import load_video

TIMES = [40 * k for k in range(50)] + [2000 + 1000 * k for k in range(50)]
write("varies.mkv", "libx264", TIMES)
write("steady.mkv", "libx264", range(0, 4000, 40))


def load(name, **choice):
    frames, about = load_video(name, backend="opencv", **choice)
    return [number(one) for one in frames], [int(one) for one in about.frames_indices], about.total_num_frames


steady, _, _ = load("steady.mkv", num_frames=8)
frames, claimed, total = load("varies.mkv", num_frames=8)
a_second, _, _ = load("varies.mkv", fps=1)
print("steady, eight asked for:", steady)
print("varying, eight asked for:", frames, "claimed:", claimed, "of", total)
print("varying, one a second of 51 seconds:", a_second)
sys.exit((len(steady), len(frames), len(claimed), len(a_second)) != (8, 1, 8, 4))
PYTHON
