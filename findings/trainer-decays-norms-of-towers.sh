#!/usr/bin/env bash
# transformers' Trainer decays the norms of Qwen2.5-VL's tower, and not one of Qwen2-VL.
#
# Guessed:  weight_decay leaves norms alone, in the tower as in the language model.
# Happens:  of Qwen2.5-VL 65 norms are decayed (norm1 and norm2 of each of 32 blocks, ln_q), of GLM-4.1V 48, of Ovis 2 all
#           of its blocks', of Pixtral ln_pre; of Qwen2-VL, Qwen3-VL, Gemma 3 and LLaVA none. Qwen3.5's A_log is decayed
#           too, by which a layer forgets.
# Why:      transformers/trainer.py, Trainer.get_decay_parameter_names leaves out nn.LayerNorm by class and others by name:
#           "norm" as a whole part, "_norm", "layernorm", "rmsnorm". An RMSNorm called norm1, rms_norm1 or ln_q is neither.
# Matters:  full training of these towers: such a norm's weight goes to zero at the rate times the decay, and the next
#           family, or version, trained by the same settings does otherwise.
# Versions: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import re
import sys
from collections import Counter

import torch
import transformers
from transformers import Trainer

WANTED = {
    "Qwen2VL": {},
    "Qwen3VL": {},
    "Gemma3": {},
    "Llava": {},
    "Qwen2_5_VL": {"blocks.*.norm1": 32, "blocks.*.norm2": 32, "merger.ln_q": 1},
    "Glm4v": {"blocks.*.norm1": 24, "blocks.*.norm2": 24},
    "Ovis2": {"layers.*.rms_norm1": 24, "layers.*.rms_norm2": 24},
    "Mistral3": {"vision_tower.ln_pre": 1},
    "Qwen3_5": {"linear_attn.A_log": 24},
}


def decayed(family):
    """Give how many norms and rates of forgetting Trainer decays, by name, in a model of full size without weights."""
    with torch.device("meta"):
        config = getattr(transformers, f"{family}Config")()
        model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    counts = Counter()
    for name in Trainer.get_decay_parameter_names(None, model):
        if re.search(r"norm\d?\.weight$|\.ln_\w+\.weight$|\.A_log$", name):
            parts = re.sub(r"\.\d+\.", ".*.", name).removesuffix(".weight").split(".")
            counts[".".join(parts[-3:] if parts[-2] == "*" else parts[-2:])] += 1
    return dict(sorted(counts.items()))


seen = {family: decayed(family) for family in WANTED}
for family, found in seen.items():
    print(f"{family}: decayed", found or "no norm")
sys.exit(seen != WANTED)
PYTHON
