#!/usr/bin/env bash
# datasets reads an answer that is written like a date as a moment in time.
#
# Guessed:  a JSONL file of questions and answers, all strings, loads as strings.
# Happens:  a column in which every string looks like a date becomes a timestamp, also inside lists: the
#           answer "2024-01-05" comes back as datetime(2024, 1, 5, 0, 0), and str() of it is another text.
#           One answer that is no date ("unknown") and the whole column stays text.
# Why:      datasets/packaged_modules/json/json.py reads with pyarrow.json.read_json, whose inference turns
#           ISO 8601 strings into timestamps.
# Matters:  document questions about dates train and score on "2024-01-05 00:00:00"; a Parquet file
#           written from such a data set keeps the timestamps.
# Versions: datasets 5.2.0, pyarrow 26.0.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6

python - <<'PYTHON'
import json
import sys
from datetime import datetime
from pathlib import Path

from datasets import load_dataset


def load(name, *answers):
    rows = [{"question": "When?", "answer": one, "answers": [one]} for one in answers]
    Path(name).write_text("\n".join(map(json.dumps, rows)))
    return load_dataset("json", data_files=name, split="train")[0]


dates = load("dates.jsonl", "2024-01-05", "1997-10-30")
mixed = load("mixed.jsonl", "2024-01-05", "unknown")
print("all dates:  ", dates)
print("one is none:", mixed)
day = datetime(2024, 1, 5)
sys.exit((dates["answer"], dates["answers"], mixed["answer"]) != (day, [day], "2024-01-05"))
PYTHON
