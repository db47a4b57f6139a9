#!/usr/bin/env bash
# datasets.map drops what was drawn on a picture in place.
#
# Guessed:  a function that blackens a decoded picture and returns the row gives a blackened picture.
# Happens:  where the picture came from a file, the new data set holds the untouched file. A change that
#           makes a new picture (rotate, convert) is kept; one in place (paste, thumbnail, ImageDraw) is not.
# Why:      datasets/features/image.py, encode_pil_image: a picture that still has a `filename` is stored as
#           that path, whatever its pixels are by now.
# Matters:  masks over faces and answers, stamps and shrinking silently never reach training.
# Versions: datasets 5.2.0, Pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 pillow==13.0.0 numpy==2.4.6

python - <<'PYTHON'
import sys

from datasets import Dataset, Image
from PIL import Image as Pillow

Pillow.new("RGB", (64, 48), "white").save("page.png")
pages = Dataset.from_dict({"image": ["page.png"]}).cast_column("image", Image())


def blacken(row):
    row["image"].paste("black", (0, 0, 64, 48))
    return row


def shrink(row):
    row["image"].thumbnail((16, 16))
    return row


def turn(row):
    return {"image": row["image"].rotate(90, expand=True)}


seen = {
    "blackened in place": pages.map(blacken)[0]["image"].getpixel((5, 5)),
    "shrunk in place": pages.map(shrink)[0]["image"].size,
    "turned into a new picture": pages.map(turn)[0]["image"].size,
}
print(seen)
sys.exit(list(seen.values()) != [(255, 255, 255), (64, 48), (48, 64)])
PYTHON
