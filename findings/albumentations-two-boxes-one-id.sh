#!/usr/bin/env bash
# Large ids that go through albumentations beside their boxes come back as other ids, and two as one.
#
# Guessed:  what stands in label_fields is carried along with its box as it is; integers come back as the integers they were.
# Happens:  behind a transform that does nothing 16777217 is 16777216, as its neighbour is, and 900100581904 (as COCO's crowds
#           are numbered) is 900100587520; in a list they are floats, in an array of int64 still int64, and wrong. The same beside
#           keypoints, and 0.1 is 0.10000000149. As strings they come back whole.
# Why:      albumentations/core/label_manager.py, LabelManager._encode_data writes numbers as float32 into a column
#           beside the edges, which has 24 bits.
# Matters:  annotation ids that join boxes to masks, captions, answers or scores, in sets of more than 16.7 million boxes or
#           with ids of a database or a clock: two boxes have one caption, and no error says so. Pass str(id).
# Versions: albumentations 2.0.8.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" albumentations==2.0.8 numpy==2.4.6
export NO_ALBUMENTATIONS_UPDATE=1

python - <<'PYTHON'
import sys

import albumentations as A
import numpy as np

PICTURE = np.zeros((64, 64, 3), np.uint8)
BOXES = [[0, 0, 10, 10], [20, 20, 40, 40]]
POINTS = [(1, 2), (3, 4)]


def back(ids):
    compose = A.Compose([A.NoOp()], bbox_params=A.BboxParams(format="pascal_voc", label_fields=["ids"]))
    return list(compose(image=PICTURE, bboxes=BOXES, ids=ids)["ids"])


def beside_points(ids):
    compose = A.Compose([A.NoOp()], keypoint_params=A.KeypointParams(format="xy", label_fields=["ids"]))
    return list(compose(image=PICTURE, keypoints=POINTS, ids=ids)["ids"])


def told(ids):
    came = back(ids)
    print(f"{ids!r} -> {came} ({type(came[0]).__name__})")
    return came


seen = [
    told([16777216, 16777217]),
    told(np.array([16777216, 16777217])),
    told([900100581904, 900100581905]),
    told([0.1, 0.5]),
    told(["16777216", "16777217"]),
    beside_points([16777216, 16777217]),
]
print("beside keypoints:", seen[-1])
sys.exit(seen != [[16777216] * 2, [16777216] * 2, [900100587520] * 2, [float(np.float32(0.1)), 0.5], ["16777216", "16777217"], [16777216] * 2])
PYTHON
