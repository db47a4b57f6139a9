#!/usr/bin/env bash
# supervision cuts PaliGemma's labels at the first dot, apostrophe, slash or bracket, and then no class is called so.
#
# Guessed:  Detections.from_vlm gives the label that stands between a box and the next ";", whole.
# Happens:  "bird's nest" is a bird, "T.V. set" a T and "salad/bread" a salad; with classes= naming the labels as they
#           were taught, those boxes are dropped without a word. The same label from Qwen2.5-VL comes back whole.
# Why:      supervision/detection/vlm.py, from_paligemma reads a label by the pattern [\w\s\-]+.
# Matters:  LVIS, Objects365, Open Images and one's own names (LVIS: "bow_(decorative_ribbons)"): recall is lost where the
#           model was right, and 80 COCO classes do not show it.
# Versions: supervision 0.31.2.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" supervision==0.31.2

python - <<'PYTHON'
import json
import sys

import supervision as sv

LABELS = ["traffic light", "bird's nest", "T.V. set", "salad/bread", "bow_(decorative_ribbons)"]
BOXES = [[64 * place, 0, 64 * place + 32, 512] for place in range(len(LABELS))]


def names(model, said, **options):
    return sv.Detections.from_vlm(model, said, resolution_wh=(1024, 1024), **options).data["class_name"].tolist()


places = ["".join(f"<loc{edge:04}>" for edge in (top, left, bottom, right)) for left, top, right, bottom in BOXES]
pali = " ; ".join(f"{place} {label}" for place, label in zip(places, LABELS))
qwen = json.dumps([{"bbox_2d": box, "label": label} for box, label in zip(BOXES, LABELS)])
print("said:", pali)
by_pali, kept = names(sv.VLM.PALIGEMMA, pali), names(sv.VLM.PALIGEMMA, pali, classes=LABELS)
by_qwen = names(sv.VLM.QWEN_2_5_VL, f"```json\n{qwen}\n```", input_wh=(1024, 1024))
print("from PaliGemma:", by_pali)
print("from PaliGemma, with these as classes:", kept)
print("from Qwen2.5-VL:", by_qwen)
sys.exit((by_pali, kept, by_qwen) != (["traffic light", "bird", "T", "salad", "bow_"], ["traffic light"], LABELS))
PYTHON
