#!/usr/bin/env bash
# datasets rounds the numbers of a JSON file that is one list to ten places; the same rows line by line keep them.
#
# Guessed:  rows as a list, rows under a field, rows line by line: the same numbers, those of the file.
# Happens:  0.1234567890123 becomes 0.123456789 and 3e-11 becomes 0.0 in a file that is a list and in one with field=.
#           Line by line they are kept, until one column has values of two types: then all columns are rounded.
# Why:      datasets/packaged_modules/json/json.py, _generate_tables turns such files into lines before pyarrow reads them,
#           by ujson_dumps of datasets/utils/json.py; that is pandas', and writes ten places unless it is told otherwise.
# Matters:  LLaVA's and most chat files are one list. Probabilities of a teacher or of a logged answer become zero, and
#           their logarithms minus infinity; one row of another type far down changes the numbers of all others.
# Versions: datasets 5.2.0, pandas 3.1.1, pyarrow 26.0.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6

python - <<'PYTHON'
import json
import sys
from pathlib import Path

from datasets import load_dataset

ROWS = [{"answer": "yes", "chances": [3e-11, 0.1234567890123]}, {"answer": "no", "chances": [0.5, 0.25]}]


def load(name, text, **options):
    Path(name).write_text(text)
    return load_dataset("json", data_files=name, split="train", **options)[0]["chances"]


def lines(*rest):
    return "\n".join(json.dumps(row | {"note": note}) for row, note in zip(ROWS, rest, strict=True))


seen = {
    "line by line": load("lines.jsonl", lines("a", "b")),
    "a list": load("list.json", json.dumps(ROWS)),
    "a field": load("field.json", json.dumps({"rows": ROWS}), field="rows"),
    "line by line, and a note that is a number": load("mixed.jsonl", lines("a", 1)),
}
for title, numbers in seen.items():
    print(f"{title}: {numbers}")
kept, *others = seen.values()
sys.exit(kept != ROWS[0]["chances"] or any([round(one, 12) for one in numbers] != [0.0, 0.123456789] for numbers in others))
PYTHON
