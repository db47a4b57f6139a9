#!/usr/bin/env bash
# Inspect's numeric match takes two numbers for one where their first five digits agree.
#
# Guessed:  match(numeric=True) compares numbers: "148211" is wrong where 148212 is asked for, as "48211" is for 48212.
# Happens:  148211 is right for 148212, 1999999 for 2000000, 48211.37 for 48211.42, and with location="exact" too. Without
#           numeric=True all are wrong. 48211 for 48212 is wrong either way.
# Why:      inspect_ai/scorer/_common.py, normalize_number writes both numbers with five significant digits, and match_str
#           compares what was written.
# Matters:  invoice and account numbers, populations, sums on receipts, counts in charts: a misread sixth digit is as good
#           as none, and the setting that says "numeric" is what hides it.
# Versions: inspect-ai 0.3.285.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" inspect-ai==0.3.285

python - <<'PYTHON'
import asyncio
import sys

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, match
from inspect_ai.solver import TaskState

PAIRS = [("148211", "148212"), ("1999999", "2000000"), ("48211.37", "48211.42"), ("2,026,113", "2026087"), ("48211", "48212")]


def right(answer, target, **how):
    state = TaskState(model="none", sample_id=1, epoch=1, input="How many?", messages=[])
    state.output = ModelOutput.from_content("none", answer)
    return asyncio.run(match(**how)(state, Target(target))).value == "C"


seen = []
for answer, target in PAIRS:
    as_text, as_number = right(answer, target), right(answer, target, numeric=True)
    exactly = right(answer, target, numeric=True, location="exact")
    seen.append((as_text, as_number, exactly))
    print(f"{answer} for {target}: as text {as_text}, numeric {as_number}, numeric and exact {exactly}")
sys.exit(seen != [(False, True, True)] * 4 + [(False, False, False)])
PYTHON
