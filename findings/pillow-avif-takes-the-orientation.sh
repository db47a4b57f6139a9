#!/usr/bin/env bash
# Saving a photo as AVIF takes the orientation out of the EXIF in memory; what is saved after it lies on its side.
#
# Guessed:  save() reads what it is given: image.save("a.avif", exif=exif), then image.save("b.jpg", exif=exif) write the
#           same orientation twice, as for any other two formats.
# Happens:  the AVIF is upright, the JPEG after it has no orientation. With exif=image.getexif() it is the photo's own
#           EXIF that changes: ImageOps.exif_transpose(image) turns nothing any more. Given as bytes all is well.
# Why:      PIL/AvifImagePlugin.py, _save: an Image.Exif is taken as it is, and its orientation popped, to be written as
#           the container's own turn; Image.getexif gives the same object each time.
# Matters:  whoever writes a smaller AVIF beside the photo and goes on with the photo trains on it lying.
# Versions: pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" pillow==13.0.0

python - <<'PYTHON'
import sys

from PIL import ExifTags, Image, ImageOps

tag = Image.Exif()
tag[ExifTags.Base.Orientation] = 6
Image.new("RGB", (32, 64), "white").save("photo.jpg", exif=tag.tobytes())


def saved_in_turn(first, as_bytes):
    """Save as one format, then as JPEG; tell the size of the two and of the photo, all turned upright."""
    with Image.open("photo.jpg") as photo:
        exif = photo.getexif().tobytes() if as_bytes else photo.getexif()
        photo.save(f"first.{first}", exif=exif)
        photo.save("second.jpg", exif=exif)
        sizes = [ImageOps.exif_transpose(photo).size]
    for name in (f"first.{first}", "second.jpg"):
        with Image.open(name) as image:
            sizes.insert(-1, ImageOps.exif_transpose(image).size)
    return sizes


seen = {(first, as_bytes): saved_in_turn(first, as_bytes) for first in ("avif", "webp", "png") for as_bytes in (False, True)}
for (first, as_bytes), (one, two, photo) in seen.items():
    print(f"{first}, exif as {'bytes' if as_bytes else 'Image.Exif'}: {first} {one}, then jpg {two}, photo in memory {photo}")
UPRIGHT, LYING = (64, 32), (32, 64)
expected = {key: [UPRIGHT, LYING, LYING] if key == ("avif", False) else [UPRIGHT] * 3 for key in seen}
sys.exit(seen != expected)
PYTHON
