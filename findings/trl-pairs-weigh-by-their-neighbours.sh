#!/usr/bin/env bash
# A preference pair weighs more in TRL's DPO step if it stands alone in its micro-batch.
#
# Guessed:  five pairs make the same step at once and as micro-batches of 2, 2 and 1, as transformers' Trainer does for
#           language modelling since its accumulation was mended.
# Happens:  the last pair weighs 1/3 instead of 1/5: the gradient differs by a fifth. As 5 micro-batches of 1 it is equal.
# Why:      trl/trainer/dpo_trainer.py, _compute_loss takes per_sequence_loss.mean() and no num_items_in_batch;
#           transformers/trainer.py divides by the number of micro-batches.
# Matters:  the last step of each epoch, and every data set whose size is no multiple of the batch.
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets==5.2.0 pillow==13.0.0

python - <<'PYTHON'
import sys

from tiny_pairs import one_step

ROWS = [
    {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}
    for prompt, chosen, rejected in (
        ("a b c", "d e f", "g"),
        ("a", "d", "g h i"),
        ("b", "d k", "g l m n o p"),
        ("c c", "d", "h i"),
        ("e", "f", "p p p p p p p"),
    )
]


def cut(size, parts):
    return one_step(ROWS, per_device_train_batch_size=size, gradient_accumulation_steps=parts)


(whole_loss, whole), (cut_loss, in_three), (_, in_five) = cut(5, 1), cut(2, 3), cut(1, 5)
off = {name: ((one - whole).norm() / whole.norm()).item() for name, one in {"2+2+1": in_three, "1+1+1+1+1": in_five}.items()}
print(f"loss at once {whole_loss:.5f}, as 2+2+1 {cut_loss:.5f}")
print({name: f"gradient off by {share:.1e}" for name, share in off.items()})
sys.exit(not (off["2+2+1"] > 0.05 and off["1+1+1+1+1"] < 1e-5))
PYTHON
