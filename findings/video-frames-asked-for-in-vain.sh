#!/usr/bin/env bash
# processor(videos=..., num_frames=8) gives 8 frames, 100 frames or an error, by family.
#
# Guessed:  a video processor that takes `num_frames` and is given 100 frames and num_frames=8 uses eight.
# Happens:  Qwen2-VL, InternVL and LLaVA-OneVision use all 100 without a word; Qwen3-VL says that num_frames
#           and fps exclude each other, though no fps was given; GLM-4V uses 8 because that is two a second
#           of four seconds, also where num_frames=4 is asked for. Gemma 4 uses eight.
# Why:      transformers/video_processing_utils.py, preprocess: frames are chosen only if do_sample_frames,
#           which is False by default in most families; Qwen3-VL's own fps=2 counts as given; GLM-4V's
#           sample_frames takes no num_frames.
# Matters:  100 frames cost twelve times the tokens of eight, and training on them is not what was asked.
# Versions: transformers 5.23.0, torch 2.13.0, torchvision 0.28.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 pillow==13.0.0

python - <<'PYTHON'
import sys

import numpy as np
import torchvision_alone  # noqa: F401
import transformers
from transformers.video_utils import VideoMetadata

CLIP = np.zeros((100, 56, 56, 3), np.uint8)


def frames(family, **choice):
    processor = getattr(transformers, f"{family}VideoProcessor")()
    about = VideoMetadata(total_num_frames=100, fps=25, duration=4.0, width=56, height=56)
    options = {"video_metadata": [about], "return_metadata": True, "return_tensors": "pt"}
    try:
        used = processor(videos=CLIP, **options, **choice)["video_metadata"][0].frames_indices
    except ValueError as error:
        return str(error).partition(",")[0]
    return len(CLIP) if used is None else len(used)


seen = {}
for family in ("Qwen2VL", "InternVL", "LlavaOnevision", "Qwen3VL", "Glm4v", "Gemma4"):
    seen[family] = frames(family, num_frames=8)
    print(f"{family}: {seen[family]}")
seen["Glm4v of four"] = frames("Glm4v", num_frames=4)
print("Glm4v where four are asked for:", seen["Glm4v of four"])
excluded = "`num_frames` and `fps` are mutually exclusive arguments"
sys.exit(list(seen.values()) != [100, 100, 100, excluded, 8, 8, 8])
PYTHON
