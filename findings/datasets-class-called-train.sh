#!/usr/bin/env bash
# Class folders of which one is called "train", and datasets loads that one alone, without its label.
#
# Guessed:  three class folders are three classes, whatever they are called; at worst one is refused.
# Happens:  of bus, train and truck (all of COCO's) three pictures of nine come back, as the split "train", without labels
#           and without a word. "test tube" beside other classes does the same; "trains" does not.
# Why:      datasets/data_files.py, DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME: a folder named by a word for a split (train, dev,
#           val, test, eval, ...), alone or before a space, dot, dash or digit, is that split; once one is found, what no
#           split names is not looked at. One class being left, no label is made.
# Matters:  COCO's and Open Images' "train", "test tube", "test strip", "dev board": the set is there, and is one class.
# Versions: datasets 5.2.0, pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1 numpy==2.4.6

python - <<'PYTHON'
import sys
from pathlib import Path

from datasets import load_dataset
from PIL import Image


def load(*classes):
    root = Path("-".join(classes).replace(" ", "_"))
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(root / name / f"{number}.png")
    splits = load_dataset("imagefolder", data_dir=str(root))
    return {split: (rows.num_rows, sorted(rows.features)) for split, rows in splits.items()}


seen = [load("bus", "trains", "truck"), load("bus", "train", "truck"), load("beaker", "flask", "test tube")]
for one in seen:
    print(one)
labelled, alone = (9, ["image", "label"]), (3, ["image"])
sys.exit(seen != [{"train": labelled}, {"train": alone}, {"test": alone}])
PYTHON
