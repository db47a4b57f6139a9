#!/usr/bin/env bash
# One metadata file beside class folders, and datasets drops every image that it does not name, and all labels.
#
# Guessed:  a metadata.jsonl with captions for two of six images adds a column: the others have none, or their absence is
#           an error; the labels from the folders stay, at the latest with drop_labels=False.
# Happens:  two rows with captions, no label, no word. drop_labels=False changes nothing; drop_metadata=True brings the six
#           back without their labels, and so do both. While the file lies there, no option gives the labels.
# Why:      datasets/packaged_modules/folder_based_builder/folder_based_builder.py: where a metadata file is found,
#           _split_generators sets add_labels to False without asking, and _generate_examples goes through the lines of
#           the metadata instead of through the files.
# Matters:  a set that is captioned bit by bit is trained on what is captioned; a stray metadata.jsonl takes the classes away.
# Versions: datasets 5.2.0, pillow 13.0.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 pillow==13.0.0

python - <<'PYTHON'
import json
import sys
from pathlib import Path

from datasets import load_dataset
from PIL import Image

for kind in ("cat", "dog"):
    Path("photos", kind).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(f"photos/{kind}/{number}.png")


def read(title, **options):
    rows = load_dataset("imagefolder", data_dir="photos", split="train", cache_dir=f"cache {title}", **options)
    print(f"{title}: {len(rows)} rows with", *rows.column_names)
    return len(rows), rows.column_names


plain = read("class folders alone")
named = [{"file_name": f"{kind}/0.png", "caption": f"a {kind}"} for kind in ("cat", "dog")]
Path("photos/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
with_metadata = read("with metadata")
asked = read("with metadata, drop_labels=False", drop_labels=False)
without = read("with metadata, drop_metadata=True", drop_metadata=True)
both = read("with metadata, both", drop_metadata=True, drop_labels=False)
whole, part, bare = (6, ["image", "label"]), (2, ["image", "caption"]), (6, ["image"])
sys.exit([plain, with_metadata, asked, without, both] != [whole, part, part, bare, bare])
PYTHON
