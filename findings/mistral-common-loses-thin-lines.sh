#!/usr/bin/env bash
# Mistral's own encoder shrinks a page without a filter: thin lines are gone that transformers' Pixtral processor keeps.
#
# Guessed:  for the same page and the same checkpoint mistral-common and transformers make the same picture, up to rounding.
# Happens:  of a white page of 3072 x 3072 with black lines one pixel wide, 12 apart, Pixtral reads lines of a grey by
#           transformers; by mistral-common a blank page, or lines that are fully black, by where the first line stands.
# Why:      mistral_common/tokens/tokenizers/image.py, transform_image takes cv2.resize with INTER_CUBIC, which weighs four
#           neighbours at any scale: of three pixels one is read and two are not. transformers/models/pixtral resizes by
#           Pillow's bicubic, whose support grows with the scale.
# Matters:  tables, forms, plans and small print from 200 dpi on, where a model is trained through one and served through
#           the other (vLLM with --tokenizer-mode mistral).
# Versions: mistral-common 1.13.1, opencv-python-headless 5.0.0, transformers 5.23.0, pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" 'mistral-common[image]==1.13.1' opencv-python-headless==5.0.0.93 transformers==5.23.0 \
    pillow==13.0.0 numpy==2.3.5

python - <<'PYTHON'
import sys

import numpy as np
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
encoder = ImageEncoder(ImageConfig(16, 1024), SpecialImageIDs(img=0, img_break=1, img_end=2))
processor = PixtralImageProcessorPil(image_mean=MEAN.tolist(), image_std=STD.tolist())


def levels(pixels):
    """Give the red values of one row, from 0 to 255, of normalised pixels (channels, height, width)."""
    return np.rint((np.asarray(pixels, dtype=np.float64)[0] * STD[0] + MEAN[0]) * 255)[500]


seen = {}
for first in (0, 1):
    page = np.full((3072, 3072, 3), 255, dtype=np.uint8)
    page[:, first::12] = 0
    page = Image.fromarray(page)
    own = levels(encoder(ImageChunk(image=page)).image)
    other = levels(processor(page, return_tensors="np")["pixel_values"][0])
    assert own.shape == other.shape == (1024,)
    seen[first] = (int(own.min()), int(other.min()))
    print(f"first line at pixel {first}: darkest by mistral-common {own.min():.0f}, by transformers {other.min():.0f}")
(blank, some), (black, grey) = seen.values()
sys.exit(not (blank == 255 and black == 0 and 100 < some < 230 and 100 < grey < 230))
PYTHON
