#!/usr/bin/env bash
# TRL's DPOTrainer drops a text pair whose prompt fills max_length, and trains on a picture pair that does.
#
# Guessed:  what is done for words is done for pictures: the pair is dropped, or refused.
# Happens:  the picture pair stays, both answers cut to nothing: loss log 2, gradient exactly zero, no word. It counts
#           as an example and halves the gradient of its neighbour. (Where the cut falls into the picture there is an
#           error; here it falls behind it.)
# Why:      trl/trainer/dpo_trainer.py, _prepare_dataset filters after tokenizing, which picture data sets skip;
#           DataCollatorForVisionPreference cuts input_ids[:, :max_length] whatever is left of the answers.
# Matters:  long questions about pictures look like a run whose loss stands at 0.693.
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets==5.2.0 pillow==13.0.0

python - <<'PYTHON'
import math
import sys

from PIL import Image
from tiny_pairs import one_step, trainer

PICTURE = [Image.new("RGB", (28, 28), "red")]


def pair(prompt, pictures):
    words = {"prompt": prompt, "chosen": " d", "rejected": " f"}
    return {"images": PICTURE, **words, "prompt": f"<image> {prompt}"} if pictures else words


SHORT, LONG, MOST = "a b", "a b c d e f g h i j k l", 10
options = {"max_length": MOST, "remove_unused_columns": False}
kept = {kind: len(trainer([pair(SHORT, kind), pair(LONG, kind)], kind, max_length=MOST).train_dataset) for kind in (False, True)}
loss, gradient = one_step([pair(LONG, True)], True, **options)
_, alone = one_step([pair(SHORT, True)], True, **options)
_, beside = one_step([pair(SHORT, True), pair(LONG, True)], True, **options)
share = (beside.norm() / alone.norm()).item()
print(f"of two pairs kept: {kept[False]} with words, {kept[True]} with pictures")
print(f"the long picture pair: loss {loss:.6f} (log 2 is {math.log(2):.6f}), largest gradient {gradient.abs().max()}")
print(f"gradient of the short one beside it: {share:.3f} of its own")
zero = gradient.abs().max().item() == 0.0 and abs(loss - math.log(2)) < 1e-6
sys.exit(not (kept == {False: 1, True: 2} and zero and abs(share - 0.5) < 1e-3))
PYTHON
