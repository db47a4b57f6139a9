#!/usr/bin/env bash
# An icon of 64 x 64 costs Idefics 3 and SmolVLM what a scanned page does: 17 crops.
#
# Guessed:  an image smaller than one crop is one crop, as for InternVL, LLaVA-NeXT and Phi-3.5; splitting is for those
#           that are larger.
# Happens:  it is enlarged to 4 by 4 crops and shown once more as a whole. A square costs most of all shapes, whatever its
#           size; a panorama of 2048 x 512 has five crops.
# Why:      transformers/models/idefics3/image_processing_pil_idefics3.py, _preprocess: resize brings the longer side to
#           size["longest_edge"] whichever way, and only then asks whether there is anything to split.
# Matters:  data sets of icons, characters and thumbnails take seventeen times the tower's work, and a thousand tokens and
#           more an image; do_image_splitting=False or a smaller longest_edge gives one crop.
# Versions: transformers 5.23.0, torch 2.13.0, pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 pillow==13.0.0 numpy==2.4.6

python - <<'PYTHON'
import sys

from PIL import Image
from transformers import Idefics3ImageProcessorPil, SmolVLMImageProcessorPil

PROCESSORS = {
    "Idefics 3": Idefics3ImageProcessorPil(),
    "SmolVLM": SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}),
}
SIZES = ((64, 64), (1275, 1650), (2048, 512))
seen = {}
for name, processor in PROCESSORS.items():
    for size in SIZES:
        pixels = processor([[Image.new("RGB", size)]], return_tensors="pt")["pixel_values"]
        seen[name, size] = pixels.shape[1]
        print(f"{name}, {size[0]} x {size[1]}: {pixels.shape[1]} crops of {pixels.shape[3]} x {pixels.shape[4]}")
    whole = processor([[Image.new("RGB", (64, 64))]], do_image_splitting=False, return_tensors="pt")["pixel_values"]
    print(f"{name}, 64 x 64 without splitting: {whole.shape[1]} crop")
sys.exit([seen[name, size] for name in PROCESSORS for size in SIZES] != [17, 17, 5] * 2)
PYTHON
