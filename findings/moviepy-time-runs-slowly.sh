#!/usr/bin/env bash
# In an MP4 whose frame rate varies, as a phone's does, MoviePy's time runs slowly: second 9 shows second 3, and the last frames never come.
#
# Guessed:  get_frame(t) gives the frame that is to be seen at t; iter_frames ends with the last.
# Happens:  of two quick seconds and eight slow ones (90 frames) get_frame(1) is frame 9 for 25, get_frame(9) frame 56 for 85;
#           iter_frames gives 90 frames, as many as there are, the last of them frame 57, and subclipped(5, 6) shows what is
#           to be seen from 1.8 to 2 s. The same frames in Matroska, or with fps_source="tbr", are right.
# Why:      moviepy/video/io/ffmpeg_reader.py: get_frame_number counts at the average rate that ffmpeg prints for an MP4
#           ("9.15 fps"), while ffmpeg, asked in initialize for raw frames at no rate, repeats frames up to the nominal
#           ("25 tbr"). For Matroska it prints the nominal one twice.
# Matters:  frames and clips cut by time for captions and questions: they show what was earlier, with no error, and 30 steady
#           frames a second do not show it. PyAV gives each frame with its time.
# Versions: moviepy 2.2.1, imageio-ffmpeg 0.8.1, av 18.1.0 (to write the clips).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" moviepy==2.2.1 imageio-ffmpeg==0.8.1 av==18.1.0 numpy==2.4.6 pillow==11.3.0

python - <<'PYTHON'
import sys

from moviepy import VideoFileClip
from numbered_frames import number, write

TIMES = [40 * place for place in range(50)] + [2000 + 200 * place for place in range(40)]
SECONDS = (0.5, 1, 2, 5, 9)


def frame(name, second, **choice):
    with VideoFileClip(name, **choice) as clip:
        return number(clip.get_frame(second))


def frames(name, cut=None, **choice):
    with VideoFileClip(name, **choice) as clip:
        return [number(one) for one in (clip.subclipped(*cut) if cut else clip).iter_frames()]


write("varies.mp4", "libx264", TIMES)
write("varies.mkv", "libx264", TIMES)
true = [sum(time <= 1000 * second for time in TIMES) - 1 for second in SECONDS]
print(f"frames at {SECONDS} seconds: {true}")
seen = {}
for name, choice in (("varies.mp4", {}), ("varies.mp4", {"fps_source": "tbr"}), ("varies.mkv", {})):
    at, each = [frame(name, second, **choice) for second in SECONDS], frames(name, **choice)
    cut = sorted(set(frames(name, (5, 6), **choice)))
    seen[name, *choice] = at, len(each), max(each), cut
    print(f"{name} {choice or ''}: {at}; {len(each)} frames, the last is {max(each)}; from 5 to 6 s: {cut}")
slow, *right = seen.values()
whole = range(65, 71)
sys.exit(
    slow != ([4, 9, 18, 45, 56], 90, 57, list(range(45, 51)))
    or any(at != true or last < 88 or not set(whole[:-1]) <= set(cut) <= set(whole) for at, _, last, cut in right)
)
PYTHON
