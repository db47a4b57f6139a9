#!/usr/bin/env bash
# COCO's caption evaluation gives ROUGE-L 1.0 to a caption that equals none of its references.
#
# Guessed:  of several references the best one counts, and 1.0 means that the caption is one of them.
# Happens:  "a dog" against "dog" and "a cat beside a dog" has 1.0; against each alone 0.71 and 0.53. With five references
#           a caption, as COCO has, hardly any score is that of one reference. rouge-score gives 0.67 as its best.
# Why:      pycocoevalcap/rouge/rouge.py, calc_score takes the greatest precision of all references and the greatest recall
#           of all, each from whichever has it, and joins the two in one F.
# Matters:  a long reference that holds the caption gives full precision, a short one full recall: short answers are
#           rewarded, and figures are not those of other packages' ROUGE-L. Papers' COCO and Flickr30k scores are made so.
# Versions: pycocoevalcap 1.2, rouge-score 0.1.2.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" pycocoevalcap==1.2 rouge-score==0.1.2 numpy==2.4.6

python - <<'PYTHON'
import sys

from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

CAPTION, REFERENCES = "a dog", ["dog", "a cat beside a dog"]


def coco(*references):
    return round(float(Rouge().compute_score({1: list(references)}, {1: [CAPTION]})[0]), 2)


both, each = coco(*REFERENCES), [coco(one) for one in REFERENCES]
best = round(RougeScorer(["rougeL"]).score_multi(REFERENCES, CAPTION)["rougeL"].fmeasure, 2)
print(f"{CAPTION!r} against {REFERENCES}: {both}; against each alone: {each}; rouge-score's best: {best}")
sys.exit((both, each, best) != (1.0, [0.71, 0.53], 0.67))
PYTHON
