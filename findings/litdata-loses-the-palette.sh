#!/usr/bin/env bash
# A picture with a palette comes out of LitData, and of MosaicML's MDS, with its numbers and without its colours.
#
# Guessed:  what is put in as a Pillow picture comes out as it was, or is refused.
# Happens:  a red and green chart in mode "P" comes back in mode "P" and black: every place has its number of before, and the
#           table that says which colour a number is, is gone. PNG bytes, or the picture after convert("RGB"), are whole.
# Why:      litdata/streaming/serializers.py, PILSerializer keeps mode, size and tobytes(), which has no palette, and
#           deserialize makes a picture of them by Image.frombytes, as streaming/base/format/mds/encodings.py does in PIL
#           (the column type "pil").
# Matters:  charts, diagrams, screenshots and GIFs are often stored so: such pages train as black ones, and no step fails.
# Versions: litdata 0.2.76, torch 2.13.0, pillow 13.0.0. (MDS: mosaicml-streaming 0.13.0, seen by hand, not run here.)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" litdata==0.2.76 torch==2.13.0 torchvision==0.28.0 pillow==13.0.0 numpy==2.4.6

unset TQDM_DISABLE # LitData's bar cannot be without one
cat > chart.py <<'PYTHON'
import sys

import torchvision_alone  # noqa: F401
from litdata import StreamingDataset, optimize
from PIL import Image


def chart(mode):
    colours = Image.new("RGB", (64, 32), (200, 30, 40))
    colours.paste((30, 160, 60), (0, 0, 32, 32))
    return {"chart": colours if mode == "RGB" else colours.quantize(4)}


if __name__ == "__main__":
    optimize(chart, ["RGB", "P"], "store", chunk_bytes="1MB", num_workers=1)
    modes, seen = [], []
    for row in StreamingDataset("store", shuffle=False):
        picture = row["chart"]
        modes.append(picture.mode)
        seen.append([picture.convert("RGB").getpixel(place) for place in ((50, 5), (5, 5))])
        print(f"read back in mode {picture.mode}: {seen[-1]}")
    put_in = chart("P")["chart"].convert("RGB")
    print("what was put in as P:", [put_in.getpixel(place) for place in ((50, 5), (5, 5))])
    whole = [(200, 30, 40), (30, 160, 60)]
    sys.exit(modes != ["RGB", "P"] or seen != [whole, [(0, 0, 0)] * 2])
PYTHON
python chart.py
