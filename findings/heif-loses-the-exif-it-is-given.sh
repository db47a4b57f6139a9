#!/usr/bin/env bash
# A photo saved as HEIF with its own EXIF lies on its side for good; without being told of it, it is upright.
#
# Guessed:  image.save("a.heic", exif=image.getexif()) keeps a phone's photo upright, as it does for AVIF, WebP and PNG,
#           and leaving exif out loses the orientation, as it does for these.
# Happens:  the other way round. With exif= the pixels are written as they lie, the file says "not turned", and what is
#           read back is on its side with orientation 1 in its EXIF: nothing tells of it any more.
# Why:      pillow_heif/misc.py, _get_orientation looks for the tag in bytes; at an Image.Exif object it fails, the error
#           is swallowed and orientation 1 is written (as_plugin.py, _pil_encode_image). On reading, the tag in the stored
#           EXIF is set to 1, since the container's own turn is what counts.
# Matters:  data sets converted to HEIF to save space, by the line that is right for all other formats.
# Versions: pillow-heif 1.8.1, pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" pillow-heif==1.8.1 pillow==13.0.0

python - <<'PYTHON'
import sys

import pillow_heif
from PIL import ExifTags, Image, ImageOps

pillow_heif.register_heif_opener()
upright = Image.new("RGB", (64, 32), "white")
upright.paste("red", (0, 0, 32, 16))
tag = Image.Exif()
tag[ExifTags.Base.Orientation] = 6
upright.transpose(Image.Transpose.ROTATE_90).save("photo.jpg", exif=tag, quality=95)


def is_upright(path):
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
    return turned.size == (64, 32) and turned.getpixel((8, 8))[1] < 80


seen = {}
for format_ in ("heic", "avif", "webp", "png"):
    for title in ("left out", "given"):
        with Image.open("photo.jpg") as photo:
            photo.save(f"saved.{format_}", **({"exif": photo.getexif()} if title == "given" else {}))
        seen[format_, title] = is_upright(f"saved.{format_}")
        print(f"{format_}, exif {title}: {'upright' if seen[format_, title] else 'on its side'}")
with Image.open("photo.jpg") as photo:
    photo.save("saved.heic", exif=photo.getexif())
told = Image.open("saved.heic").getexif().get(ExifTags.Base.Orientation)
print("orientation that the heic with EXIF tells:", told)
expected = {(one, title): (title == "given") != (one == "heic") for one, title in seen}
sys.exit(not is_upright("photo.jpg") or seen != expected or told != 1)
PYTHON
