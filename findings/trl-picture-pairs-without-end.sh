#!/usr/bin/env bash
# TRL's DPOTrainer ends answers about words with the end token, and answers about pictures without it.
#
# Guessed:  prompt, chosen and rejected as plain strings get the end token in both cases.
# Happens:  with words each answer's last learnt token is the end token; with pictures it is the answer's last word.
# Why:      trl/trainer/dpo_trainer.py, _prepare_dataset adds it (add_eos) while tokenizing, which picture data sets
#           skip; DataCollatorForVisionPreference tokenizes prompt and answers as they are.
# Matters:  the length of an answer is not part of the preference, and the model is never rewarded for stopping.
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets==5.2.0 pillow==13.0.0

python - <<'PYTHON'
import sys

from PIL import Image
from tiny_pairs import WORDS, trainer


def learnt(pictures):
    words = {"prompt": "a b", "chosen": " d e", "rejected": " f"}
    row = {"images": [Image.new("RGB", (28, 28))], **words, "prompt": "<image> a b"} if pictures else words
    batch = next(iter(trainer([row], pictures, remove_unused_columns=not pictures).get_train_dataloader()))
    rows = zip(batch["input_ids"], batch["completion_mask"], strict=True)
    return [[WORDS[token] for token in ids[mask.bool()]] for ids, mask in rows]


with_words, with_pictures = learnt(False), learnt(True)
print("learnt, words:   ", with_words)
print("learnt, pictures:", with_pictures)
expected = [["d", "e", "<end>"], ["f", "<end>"]], [["d", "e"], ["f"]]
sys.exit((with_words, with_pictures) != expected)
PYTHON
