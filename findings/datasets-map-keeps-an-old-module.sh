#!/usr/bin/env bash
# datasets.map answers from its cache after the function was changed, if the function stands in a module.
#
# Guessed:  the cache goes by what the function is: another body, another fingerprint, and the rows are made anew.
# Happens:  so it is for a function of the script itself. The same function in a file beside it is known by its name
#           alone: rewritten from end to end, it is not called, and the rows are those of the first version.
# Why:      datasets/fingerprint.py, Hasher.hash is a checksum of what datasets/utils/_dill.py pickles; a function that can
#           be imported is pickled as module and name, one of __main__ with its code.
# Matters:  a mended prompt, box or crop in one's own prepare.py, and every next run trains on the rows of before, in silence;
#           so does a new release of a package whose function is given to map. load_from_cache_file=False helps.
# Versions: datasets 5.2.0, dill 0.4.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 dill==0.4.1 pyarrow==26.0.1 numpy==2.4.6

python - <<'PYTHON'
import json
import subprocess
import sys
from pathlib import Path

FUNCTION = 'def prompt(row):\n    return {{"prompt": row["question"] + " {}"}}\n'
RUN = """
from datasets import load_dataset
print(load_dataset("json", data_files="rows.jsonl", split="train").map(prompt)[0]["prompt"])
"""
Path("rows.jsonl").write_text(json.dumps({"question": "What is it?"}))


def run(words, in_module):
    body = FUNCTION.format(words)
    Path("prepare.py").write_text(body)
    Path("run.py").write_text(("from prepare import prompt\n" if in_module else body) + RUN)
    ran = subprocess.run([sys.executable, "-B", "run.py"], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


WORDS = ("Answer.", "Answer in one word.")
script, module = ([run(words, in_module) for words in WORDS] for in_module in (False, True))
print("function in the script, before and after it is changed:", script)
print("function in a module:", module)
old, new = (f"What is it? {words}" for words in WORDS)
sys.exit((script, module) != ([old, new], [old, old]))
PYTHON
