#!/usr/bin/env bash
# A mask in two parts, or with a hole, goes into supervision's COCO file as a crowd, and pycocotools no longer asks for it.
#
# Guessed:  as_coco writes such a mask as run lengths, as its documentation says, and it stays an object like any other.
# Happens:  of a whole mask, one behind a pole and a ring the last two have "iscrowd": 1; a model that finds the first alone
#           has an average precision of 1.0. With the same file and "iscrowd": 0 it is a third. from_coco gives all three back.
# Why:      supervision/dataset/formats/coco.py, detections_to_coco_annotations takes "iscrowd" for the name of the run-length
#           format; pycocotools/cocoeval.py, COCOeval._prepare ignores what is a crowd, and so do loaders that train.
# Matters:  labels drawn by a model such as SAM, where parts and holes are common: what is occluded is neither learnt nor
#           missed, and scores rise. Set "iscrowd" to 0 in the file; data={"iscrowd": ...} before it would fill the holes.
# Versions: supervision 0.31.2, pycocotools 2.0.11.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" supervision==0.31.2 pycocotools==2.0.11 numpy==2.4.6 pillow==13.0.0

python - <<'PYTHON'
import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

masks = np.zeros((3, 300, 300), bool)
masks[0, 10:90, 10:90] = True  # whole
masks[1, 110:190, 10:40] = masks[1, 110:190, 60:90] = True  # in two parts
masks[2, 210:290, 10:90], masks[2, 230:270, 30:70] = True, False  # a ring
Image.new("RGB", (300, 300)).save("a.png")


def precision(name):
    """Score a model that finds the first mask alone, and that one perfectly."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO(name)
        first = true.loadAnns(1)[0]
        found = [{"image_id": first["image_id"], "category_id": first["category_id"], "segmentation": true.annToRLE(first), "score": 0.9}]
        score = COCOeval(true, true.loadRes(found), "segm")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return round(score.stats[0], 2)


drawn = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.zeros(3, int))
sv.DetectionDataset(["thing"], ["a.png"], {"a.png": drawn}).as_coco(annotations_path="made.json")
made = json.loads(Path("made.json").read_text())
crowds = [one["iscrowd"] for one in made["annotations"]]
Path("mended.json").write_text(json.dumps(made | {"annotations": [one | {"iscrowd": 0} for one in made["annotations"]]}))
back = [int(mask.sum()) for _, _, one in sv.DetectionDataset.from_coco(".", "made.json", force_masks=True) for mask in one.mask]
print(f"iscrowd {crowds}; areas {masks.sum((1, 2)).tolist()}, read back {back}")
scores = precision("made.json"), precision("mended.json")
print(f"average precision of a model that finds the first alone: {scores[0]}; with iscrowd 0 throughout: {scores[1]}")
sys.exit((crowds, back, scores) != ([0, 1, 1], [6400, 4800, 4800], (1.0, 0.34)))
PYTHON
