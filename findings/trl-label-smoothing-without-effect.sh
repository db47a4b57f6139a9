#!/usr/bin/env bash
# TRL's DPOTrainer takes label_smoothing and trains without it, unless the loss is one of a few.
#
# Guessed:  DPOConfig(label_smoothing=0.4) with the default loss smooths (cDPO), as earlier TRL did and others do.
# Happens:  the loss and the gradient are those of 0.0, to the bit; no error, no warning. "robust" and "aot" change.
# Why:      trl/trainer/dpo_trainer.py, _compute_loss: the branch "sigmoid" is -logsigmoid(beta * delta) alone;
#           __init__ checks the value for "robust" and "exo_pair", not whether the loss reads it.
# Matters:  noisy preference data is trained on as if it were certain, by people who asked for the opposite.
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets==5.2.0 pillow==13.0.0

python - <<'PYTHON'
import sys

import torch
from tiny_pairs import one_step

ROWS = [{"prompt": "a b c", "chosen": " d e f", "rejected": " g"}, {"prompt": "a", "chosen": " d", "rejected": " g h"}]
same = {}
for loss in ("sigmoid", "robust", "aot"):
    (plain, without), (smoothed, with_it) = (
        one_step(ROWS, loss_type=[loss], label_smoothing=share) for share in (0.0, 0.4)
    )
    same[loss] = torch.equal(without, with_it)
    print(f"{loss}: loss {plain:.6f} without, {smoothed:.6f} with label_smoothing=0.4")
sys.exit(same != {"sigmoid": True, "robust": False, "aot": False})
PYTHON
