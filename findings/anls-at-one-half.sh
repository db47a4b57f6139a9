#!/usr/bin/env bash
# Two packages for ANLS give 0 and 0.5 for the same answer, one that is half right.
#
# Guessed:  at a threshold of 0.5 an answer of similarity exactly 0.5 keeps its 0.5, everywhere.
# Happens:  the package `anls` gives 0, `anls_star` gives 0.5. Short answers meet the border often: one
#           wrong character of two, two of four.
# Why:      anls/metrics/score.py keeps 1 - distance where the distance is < 0.5, as eq. 1 of Biten et al. 2019
#           (arXiv:1905.13648); anls_star/anls_star.py drops what is < 0.5, as DocVQA's own evaluation does.
# Matters:  scores of two papers that both say "ANLS" differ by this on short answers.
# Versions: anls 0.0.2, anls-star 1.0.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" anls==0.0.2 anls-star==1.0.1

python - <<'PYTHON'
import sys

from anls import anls_score
from anls_star import anls_score as star_score

seen = {
    (gold, said): (anls_score(prediction=said, gold_labels=[gold]), star_score(gold, said))
    for gold, said in (("12", "17"), ("1997", "1953"), ("1997", "1998"))
}
for (gold, said), (plain, star) in seen.items():
    print(f"accepted {gold!r}, said {said!r}: anls {plain}, anls_star {star}")
sys.exit(list(seen.values()) != [(0.0, 0.5), (0.0, 0.5), (0.75, 0.75)])
PYTHON
