#!/usr/bin/env bash
# Published chat templates leave the answer out, depending on how it is written down.
#
# Guessed:  {"role": "assistant", "content": "BLUE"} and content [{"type": "text", "text": "BLUE"}] come out alike, or
#           the wrong one is an error.
# Happens:  SmolVLM and Idefics3 lose the string, Qwen3 loses the list, Llama 3 and Cohere 2 print the list as Python
#           writes it, Phi-3.5 raises. Lost means an assistant's turn of nothing, and no word of it.
# Why:      their templates loop over content or concatenate it; a string has no parts with a type, a list is no string
#           (TRL's package carries the hub's templates: trl/chat_templates/*.jinja).
# Matters:  such rows teach the model to end its turn at once; a mixed set needs both forms for two models.
# Versions: trl 1.16.0 (its files alone), transformers 5.23.0, Jinja2 3.1.6.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" transformers==5.23.0 jinja2==3.1.6 numpy==2.4.6
pip install --quiet --disable-pip-version-check --no-deps trl==1.16.0

python - <<'PYTHON'
import importlib.util
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

FOLDER = Path(importlib.util.find_spec("trl").submodule_search_locations[0], "chat_templates")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), bos_token="<s>", eos_token="</s>")


def fate(template, answer):
    question = "Which?" if isinstance(answer, str) else [{"type": "text", "text": "Which?"}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception as error:  # templates raise what they like
        return type(error).__name__
    return "as Python writes it" if "'text': 'BLUE'" in text else "kept" if "BLUE" in text else "lost"


seen = {}
for name in ("smolvlm", "idefics3", "qwen3", "llama3_1", "cohere2", "phi3_5", "qwen2_5_vl"):
    template = (FOLDER / f"{name}.jinja").read_text()
    seen[name] = fate(template, "BLUE"), fate(template, [{"type": "text", "text": "BLUE"}])
    print(f"{name}: a string is {seen[name][0]}, a list is {seen[name][1]}")
expected = {
    "smolvlm": ("lost", "kept"),
    "idefics3": ("lost", "kept"),
    "qwen3": ("kept", "lost"),
    "llama3_1": ("kept", "as Python writes it"),
    "cohere2": ("kept", "as Python writes it"),
    "phi3_5": ("kept", "TypeError"),
    "qwen2_5_vl": ("kept", "kept"),
}
sys.exit(seen != expected)
PYTHON
