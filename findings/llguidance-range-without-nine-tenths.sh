#!/usr/bin/env bash
# Between 0.05 and 0.95 llguidance lets no model write 0.9, and between 0 and 0.25 not 0.2; 0.90 and 0.20 it does.
#
# Guessed:  "minimum" and "maximum" of a JSON schema let every number between them through.
# Happens:  a number that is the upper bound cut short by its last digit is refused, below 0 the lower bound likewise;
#           the same number with a zero behind it is taken, and so are its neighbours. Bounds of one place are right.
# Why:      llguidance, parser/src/json/numeric.rs, lexi_0_to_x goes down the bound's digits; behind each it asks for the next
#           one, equal or smaller, and forgets that the number may end there.
# Matters:  confidences and boxes of 0 to 1 asked for by a schema: 0.9 becomes 0.89, 0.90 or 0.91, whichever the model likes
#           next, and nothing says so. It is the engine of guidance and one of vLLM's and SGLang's.
# Versions: llguidance 1.9.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" llguidance==1.9.1

python - <<'PYTHON'
import json
import sys

from llguidance import LLMatcher, LLTokenizer

BYTES = LLTokenizer("byte")


def taken(minimum, maximum, text):
    schema = json.dumps({"type": "number", "minimum": minimum, "maximum": maximum})
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.get_error(), matcher.get_error()
    tokens = BYTES.tokenize_str(text)
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


seen = []
for minimum, maximum, good in ((0.05, 0.95, 0.9), (0, 0.25, 0.2), (0.1, 0.25, 0.2), (0.5, 2.75, 2.7), (-0.25, 0.25, -0.2), (0, 0.9, 0.8)):
    texts = [f"{good}", f"{good}0", f"{maximum}"]
    seen.append([taken(minimum, maximum, text) for text in texts])
    print(f"{minimum} to {maximum}:", ", ".join(f"{text} {'taken' if one else 'refused'}" for text, one in zip(texts, seen[-1], strict=True)))
hundredths = [text for text in (f"{one / 100}" for one in range(5, 96)) if not taken(0.05, 0.95, text)]
print("of the 91 hundredths from 0.05 to 0.95 it refuses", hundredths)
sys.exit(seen != [[False, True, True]] * 5 + [[True] * 3] or hundredths != ["0.9"])
PYTHON
