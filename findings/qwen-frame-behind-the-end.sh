#!/usr/bin/env bash
# Qwen2-VL's video processor chooses frame 382 of a clip whose last frame is 381.
#
# Guessed:  n frames of N are n places below N: floor(k * N / n).
# Happens:  15 seconds at 25 frames a second (382 frames), two frames a second: 31 places, the last of them
#           382, where 30 were worked out a line before. So for one length in 75 at 25 frames a second, for one
#           in eleven at 8. Integer arithmetic never does.
# Why:      transformers/models/qwen2_vl/video_processing_qwen2_vl.py, sample_frames:
#           torch.arange(0, N, N / n); N / n rounded down leaves room for one step more.
# Matters:  readers that look a frame up by place stop there; those that read in order give 30 frames and
#           metadata of 31. Video-LLaMA 3's and ERNIE 4.5-VL's processors have the same line.
# Versions: transformers 5.23.0, torch 2.13.0, torchvision 0.28.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 pillow==13.0.0

python - <<'PYTHON'
import sys

import torchvision_alone  # noqa: F401
from transformers import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata

processor = Qwen2VLVideoProcessor()


def choose(total, rate):
    about = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
    return processor.sample_frames(metadata=about, fps=2).tolist()


chosen = choose(382, 25)
print(len(chosen), "places, the last three", chosen[-3:], "of 382 frames")
share = {rate: sum(choose(n, rate)[-1] >= n for n in range(100, 1600)) for rate in (8, 12, 25, 30)}
print("lengths from 100 to 1599 whose last place is behind the end, by rate:", share)
sys.exit((len(chosen), chosen[-1]) != (31, 382))
PYTHON
