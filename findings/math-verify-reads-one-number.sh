#!/usr/bin/env bash
# math-verify takes the wrong time, the wrong unit and 50 for 0.5 as right, and one half more than three as wrong.
#
# Guessed:  "12:45" is no right answer where 12:30 is; nor is "5 m" for 5 cm. "50%" equals 0.5 and therefore not 50.
#           "3 1/2" is 3.5.
# Happens:  the first two are accepted, and 50% equals both 50 and 0.5; 3.5 for "3 1/2" is refused.
# Why:      math_verify/parser.py, lazy_expr_regex: a plain number needs something before it and nothing behind it, so
#           12:30 and 12:45 are both 12 and 5 cm is 5, while of a mixed number the last is taken (1);
#           math_verify/grader.py, sympy_expr_eq: a percentage is right as either of its two readings.
# Matters:  as a reward for clocks, charts and measures it pays for wrong answers. TRL, lighteval and Open R1 score by it.
# Versions: math-verify 0.9.0, latex2sympy2_extended 1.11.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" math-verify==0.9.0

python - <<'PYTHON'
import sys
from importlib.metadata import version

from math_verify import parse, verify

EXPECTED = {
    ("12:30", "12:45"): True,
    ("5 cm", "5 m"): True,
    ("50%", "0.5"): True,
    ("50%", "50"): True,
    ("3 1/2", "3.5"): False,
    ("12:30", "11:30"): False,  # it does look
    ("3/4", "0.75"): True,
}
print("latex2sympy2_extended", version("latex2sympy2_extended"))
seen = {}
for accepted, said in EXPECTED:
    gold, answer = parse(accepted), parse(said)
    seen[accepted, said] = verify(gold, answer)
    print(f"accepted {accepted!r} read as {gold[0]}, said {said!r}: {'right' if seen[accepted, said] else 'wrong'}")
sys.exit(seen != EXPECTED)
PYTHON
