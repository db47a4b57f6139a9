#!/usr/bin/env bash
# datasets drops a WebDataset's files of a kind that the first five samples do not have.
#
# Guessed:  a field that only some samples have becomes a column with gaps, or is an error.
# Happens:  the columns are those of the first five samples; later files of another kind (here labels from
#           the seventh sample on) vanish without a word, streaming or not. In the first five the same
#           difference is refused.
# Why:      datasets/packaged_modules/webdataset/webdataset.py, _split_generators:
#           NUM_EXAMPLES_FOR_FEATURES_INFERENCE = 5 decides; what is in no feature is not yielded.
# Matters:  rare annotations (a box, a second picture, a refusal) are lost for the whole data set.
# Versions: datasets 5.2.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6

python - <<'PYTHON'
import io
import sys
import tarfile

from datasets import load_dataset


def write(name, first_label):
    with tarfile.open(name, "w") as archive:
        for number in range(9):
            for kind in ("txt", "cls") if number >= first_label else ("txt",):
                entry = tarfile.TarInfo(f"{number:03}.{kind}")
                entry.size = 1
                archive.addfile(entry, io.BytesIO(b"7"))


def columns(name, streaming):
    rows = load_dataset("webdataset", data_files=name, split="train", streaming=streaming)
    return sorted(next(iter(rows)).keys() - {"__key__", "__url__"})


write("late.tar", first_label=6)
write("early.tar", first_label=3)
seen = [columns("late.tar", True), columns("late.tar", False)]
print("labels from sample 7 on, columns:", seen)
try:
    early = columns("early.tar", True)
except ValueError as error:
    early = "refused"
    print("labels from sample 4 on:", str(error)[:90])
sys.exit(seen != [["txt"], ["txt"]] or early != "refused")
PYTHON
