#!/usr/bin/env bash
# A box that was turned in Label Studio is another box in its COCO export, and another in its YOLO and VOC exports.
#
# Guessed:  an axis-aligned format gets the smallest upright box around the turned one, in each export the same.
# Happens:  around a box turned by 30 degrees in a picture twice as wide as high lies 90..135 x 50..87; COCO gets
#           80..135 x 50..77, which leaves out a quarter of its height, YOLO and VOC the box as it lay before it was turned,
#           100..140 x 50..70. Turned by 90 degrees, COCO's has the sides exchanged. In a square picture COCO's is right.
# Why:      label_studio_sdk/converter/converter.py, rotated_rectangle turns corners in per cent of width and of height, and
#           convert_to_coco multiplies by the two sides afterwards; convert_to_yolo and convert_to_voc do not read "rotation".
#           utils.py, convert_annotation_to_yolo_obb multiplies first.
# Matters:  stamps, signatures, lines of slanted text: grounding learns boxes that stand beside what they name.
# Versions: label-studio-sdk 2.1.2.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" label-studio-sdk==2.1.2

python - <<'PYTHON'
import json
import logging
import sys
import xml.etree.ElementTree as Tree
from pathlib import Path

from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.utils import convert_annotation_to_yolo_obb

logging.disable()
VIEW = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="stamp"/></RectangleLabels></View>"""


def exports(width, height, rotation):
    place = Path(f"{width}-{height}-{rotation}")
    place.mkdir()
    value = {"x": 50, "y": 50, "width": 20, "height": 20, "rotation": rotation, "rectanglelabels": ["stamp"]}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    box = {"id": "1", "type": "rectanglelabels", "from_name": "label", "to_name": "image", **size, "value": value}
    task = {"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"id": 1, "was_cancelled": False, "result": [box]}]}
    tasks = place / "tasks.json"
    tasks.write_text(json.dumps([task]))
    converter = Converter(VIEW, project_dir=None, download_resources=False)
    converter.convert_to_coco(str(tasks), str(place / "coco"), is_dir=False)
    converter.convert_to_yolo(str(tasks), str(place / "yolo"), is_dir=False)
    converter.convert_to_voc(str(tasks), str(place / "voc"), is_dir=False)
    left, top, wide, high = json.loads((place / "coco/result.json").read_text())["annotations"][0]["bbox"]
    _, x, y, w, h = map(float, next((place / "yolo/labels").iterdir()).read_text().split())
    voc = Tree.parse(next((place / "voc/Annotations").iterdir())).find(".//bndbox")
    xs, ys = zip(*convert_annotation_to_yolo_obb(value | size, normalize=False), strict=True)
    boxes = {
        "around it": (min(xs), min(ys), max(xs), max(ys)),
        "COCO": (left, top, left + wide, top + high),
        "YOLO": ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height),
        "VOC": [float(voc.find(side).text) for side in ("xmin", "ymin", "xmax", "ymax")],
    }
    return {title: tuple(round(side) for side in sides) for title, sides in boxes.items()}


wide, quarter, square = exports(200, 100, 30), exports(200, 100, 90), exports(100, 100, 30)
for title, seen in (("200 x 100, 30 degrees", wide), ("200 x 100, 90 degrees", quarter), ("100 x 100, 30 degrees", square)):
    print(f"{title}: {seen}")
lay = (100, 50, 140, 70)
sys.exit(
    wide != {"around it": (90, 50, 135, 87), "COCO": (80, 50, 135, 77), "YOLO": lay, "VOC": lay}
    or (quarter["around it"], quarter["COCO"]) != ((80, 50, 100, 90), (60, 50, 100, 70))
    or square["around it"] != square["COCO"]
)
PYTHON
