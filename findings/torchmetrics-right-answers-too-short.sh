#!/usr/bin/env bash
# An answer that equals its reference has a chrF of 17, 33 or 50 in torchmetrics where it has one, two or three letters.
#
# Guessed:  a text that equals its reference has 100 of 100, in torchmetrics as in sacrebleu, whose code it says it follows.
# Happens:  "7" for "7" has 16.7 and "no" for "no" 33.3, by chrF++ 25 and 37.5; of four such answers together, all right, the
#           corpus has 50. One longer answer among them makes the corpus 100. sacrebleu gives 100 throughout, and torchmetrics'
#           numbers with eps_smoothing=True.
# Why:      torchmetrics/functional/text/chrf.py, _calculate_fscore divides by all orders, six of letters and two of words,
#           though "no" has two and one, and what it has not counts as nothing right; sacrebleu/metrics/chrf.py,
#           CHRF._compute_f_score leaves those out unless it is told to smooth.
# Matters:  short answers, labels and cells of tables: a perfect model is at 30, a model that talks may be above it, and
#           scores of the two packages cannot stand in one table.
# Versions: torchmetrics 1.9.0, sacrebleu 2.6.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torchmetrics==1.9.0 sacrebleu==2.6.0 torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import sys

from sacrebleu.metrics import CHRF
from torchmetrics.text import CHRFScore


def scores(texts, words):
    """Score texts that equal their references: torchmetrics, sacrebleu, sacrebleu smoothed."""
    metric = CHRFScore(n_word_order=words)
    metric.update(texts, [[text] for text in texts])
    others = (CHRF(word_order=words, eps_smoothing=smooth).corpus_score(texts, [texts]).score for smooth in (False, True))
    return [round(score, 1) for score in (100 * metric.compute().item(), *others)]


seen = {}
for texts in (["7"], ["no"], ["yes"], ["7", "no", "yes", "12"], ["7", "no", "yes", "a red bus"], ["a red bus"]):
    seen[tuple(texts)] = [scores(texts, words) for words in (0, 2)]
    print(f"{texts}, torchmetrics, sacrebleu, smoothed: chrF {seen[tuple(texts)][0]}, chrF++ {seen[tuple(texts)][1]}")
expected = [(16.7, 25.0), (33.3, 37.5), (50.0, 50.0), (50.0, 50.0), (100.0, 100.0), (100.0, 100.0)]
sys.exit(list(seen.values()) != [[[score, 100.0, score] for score in pair] for pair in expected])
PYTHON
