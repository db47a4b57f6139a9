#!/usr/bin/env bash
# inspect-ai's exact() calls the answer "A" wrong where "A" is the answer.
#
# Guessed:  a scorer for exact agreement says yes to two equal texts.
# Happens:  A for A is incorrect and f1() gives it 0, as it does for "the" and "-"; B for B, C for C, D for D are right.
#           A model that answers all of four letters rightly scores 0.75. With answers in words nothing is amiss.
# Why:      inspect_ai/scorer/_classification.py, _normalize drops articles, as SQuAD's scoring of passages does, and "a" is
#           one; max_exact_score and max_f1_score pass over a target of which nothing is left.
# Matters:  multiple choice with letters, and labels such as "The", "-" and "An": a quarter of the questions is lost to every
#           model alike, and a model that favours B looks better than one that favours A. match() and choice() count A.
# Versions: inspect-ai 0.3.285.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" inspect-ai==0.3.285

python - <<'PYTHON'
import asyncio
import sys

from inspect_ai.model import ChatMessageUser, ModelName, ModelOutput
from inspect_ai.scorer import Target, exact, f1, match
from inspect_ai.solver import TaskState


def score(scorer, answer, target):
    messages = [ChatMessageUser(content="Which letter?")]
    state = TaskState(ModelName("mockllm/model"), 1, 1, "Which letter?", messages, output=ModelOutput.from_content("m", answer))
    return asyncio.run(scorer(state, Target(target))).value


TARGETS = ("A", "B", "C", "D", "the", "a dog")
seen = {title: [score(scorer, one, one) for one in TARGETS] for title, scorer in (("exact", exact()), ("f1", f1()), ("match", match()))}
print("answers equal to the target:", *TARGETS, sep="  ")
for title, values in seen.items():
    print(f"{title}:", *values, sep="  ")
right, wrong = ["C"], ["I"]
sys.exit(seen != {"exact": wrong + right * 3 + wrong + right, "f1": [0, 1, 1, 1, 0, 1], "match": right * 6})
PYTHON
