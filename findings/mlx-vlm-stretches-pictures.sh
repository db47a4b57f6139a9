#!/usr/bin/env bash
# mlx-vlm stretches a picture for Phi-3.5-vision where the published code keeps its shape and pads.
#
# Guessed:  a 1000 x 450 picture with 16 crops is scaled to 1680 x 756 and padded with white to 1680 x 1008.
# Happens:  it is scaled to 1680 x 1008: a circle comes out a third higher than wide. Nothing is padded; the number
#           of tokens is the published one, so nothing else tells.
# Why:      mlx_vlm/models/phi3_v/processing_phi3_v.py, _calc_hd_transform_size gives the padded size, and
#           _hd_transform resizes to it; _pad_to_336 finds nothing left to do.
# Matters:  text in pages is squeezed or stretched by up to a crop's side; a model tuned on the published form
#           reads it worse, worst for flat or narrow pictures.
# Versions: mlx-vlm 0.7.10, mlx 0.32.4 (CPU), Pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" mlx-vlm==0.7.10 'mlx[cpu]==0.32.4' transformers==5.23.0 pillow==13.0.0

python - <<'PYTHON'
import sys

import numpy as np
from mlx_vlm.models.phi3_v.processing_phi3_v import Phi3VImageProcessor
from PIL import Image, ImageDraw

picture = Image.new("RGB", (1000, 450), "black")
ImageDraw.Draw(picture).ellipse((400, 125, 600, 325), fill="white")
processor = Phi3VImageProcessor(num_crops=16)
pixels, (height, width) = processor.preprocess([picture])["pixel_values"], processor._process_single_image(picture)[1]
crops = np.array(pixels)[0, 1 : 1 + height * width // 336**2]
rows, columns = height // 336, width // 336
page = crops.reshape(rows, columns, 3, 336, 336).transpose(0, 3, 1, 4, 2).reshape(height, width, 3)
bright = page.mean(-1) > 0
circle = bright[:, width // 3 : 2 * width // 3]
tall, wide = circle.any(1).sum(), circle.any(0).sum()
padding = bool(bright[-50:].all())
print(f"{width} x {height}; a circle is {tall} high and {wide} wide; white below: {padding}")
sys.exit((width, height, padding, round(tall / wide, 2)) != (1680, 1008, False, 1.33))
PYTHON
