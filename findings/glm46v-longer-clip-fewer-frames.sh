#!/usr/bin/env bash
# GLM-4.6V takes a third of the frames of a clip that is one second longer, and no notice of fps.
#
# Guessed:  `fps`, "target frames to sample per second", sets how many frames are used.
# Happens:  it changes nothing: fps=1 and fps=8 give the same frames. What decides is the clip's length: 30
#           seconds are 180 frames, 31 seconds are 62.
# Why:      transformers/models/glm46v/video_processing_glm46v.py, sample_frames: `fps` is an argument that
#           the body never reads; a table in it says 3, 1 or 0.5 a second up to 30, 300 and 2400 seconds,
#           times temporal_patch_size.
# Matters:  clips around half a minute differ threefold in tokens, memory and what the model can see.
# Versions: transformers 5.23.0, torch 2.13.0, torchvision 0.28.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 pillow==13.0.0

python - <<'PYTHON'
import sys

import torchvision_alone  # noqa: F401
from transformers import Glm46VVideoProcessor
from transformers.video_utils import VideoMetadata

processor = Glm46VVideoProcessor()


def frames(seconds, fps):
    about = VideoMetadata(total_num_frames=25 * seconds, fps=25, duration=float(seconds))
    return len(processor.sample_frames(metadata=about, fps=fps))


seen = {(seconds, fps): frames(seconds, fps) for seconds in (30, 31) for fps in (1, 8)}
for (seconds, fps), count in seen.items():
    print(f"{seconds} seconds, fps={fps}: {count} frames")
sys.exit(list(seen.values()) != [180, 180, 62, 62])
PYTHON
