#!/usr/bin/env bash
# The match error rate and word information lost of torchmetrics are not jiwer's where a word is missing and another too many.
#
# Guessed:  MatchErrorRate, WordInfoLost and WordInfoPreserved give what their formulas and jiwer give, as WordErrorRate does.
# Happens:  "a b c d" read as "x a b c" is one insertion, one deletion and three hits: MER 2/5, WIL 7/16, WIP 9/16. torchmetrics
#           says 1/2, 3/4 and 1/4. Of readings with only insertions, deletions or substitutions both say the same.
# Why:      torchmetrics/functional/text/mer.py, _mer_update, wil.py and wip.py divide by, and count hits from, the longer of
#           the two texts less the edit distance; an insertion and a deletion in one text make that too few.
# Matters:  transcriptions that leave out a word here and add one there: scores of two papers by two packages, both "MER", are
#           up to twice apart, and the one in the training loop is not the one of the report.
# Versions: torchmetrics 1.9.0, jiwer 4.0.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torchmetrics==1.9.0 jiwer==4.0.0 torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import jiwer
from torchmetrics.text import MatchErrorRate, WordErrorRate, WordInfoLost, WordInfoPreserved

TRUE = "a b c d"
METRICS = {"wer": WordErrorRate, "mer": MatchErrorRate, "wil": WordInfoLost, "wip": WordInfoPreserved}
seen = {}
for title, read in (("a word added", "a b c d e"), ("a word left out", "b c d"), ("a word misread", "a b x d"), ("one added, one left out", "x a b c")):
    ours = jiwer.process_words(TRUE, read)
    pairs = {name: (getattr(ours, name), round(metric()([read], [TRUE]).item(), 6)) for name, metric in METRICS.items()}
    seen[title] = pairs
    print(f"{title} ({ours.hits} hits, {ours.substitutions} substitutions, {ours.deletions} deletions, {ours.insertions} insertions):")
    print("  jiwer, torchmetrics:", pairs)
moved = {"wer": (0.5, 0.5), "mer": (0.4, 0.5), "wil": (0.4375, 0.75), "wip": (0.5625, 0.25)}
alike = [abs(one - two) < 1e-5 for title, pairs in seen.items() if "one" not in title for one, two in pairs.values()]
sys.exit(not all(alike) or len(alike) != 12 or seen["one added, one left out"] != moved)
PYTHON
