#!/usr/bin/env bash
# The mean of a LoRA adapter and a copy of itself, by PEFT's "linear", is twice the adapter.
#
# Guessed:  add_weighted_adapter(["a", "copy of a"], [0.5, 0.5], "mean", combination_type="linear") is a again, as in
#           "cat" and "svd"; of two adapters it is half of the one and half of the other.
# Happens:  "linear" and "magnitude_prune" give 2 a, and for four copies 4 a.
# Why:      peft/tuners/lora/model.py, _generalized_task_arithmetic_weighted_adapter adds the A matrices and the B
#           matrices by the roots of the weights: (sum of root(w) B)(sum of root(w) A) has the mixed products too, and
#           they are the adapter's own when its factors are alike.
# Matters:  averages over seeds, checkpoints of a run and tasks that began from one adapter, where factors are alike:
#           the nearer they are, the nearer their mean is to twice any of them. "cat" is the sum that is meant.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import math
import sys

import torch
from peft import LoraConfig, get_peft_model

CONFIG = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)


def combined(copies, how):
    """Give the mean of as many copies of an adapter, in parts of it, and what of it lies elsewhere."""
    torch.manual_seed(0)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False)), CONFIG, adapter_name="a0")
    layer = model.base_model.model[0]
    names = [f"a{index}" for index in range(copies)]
    for name in names[1:]:
        model.add_adapter(name, CONFIG)
        layer.lora_A[name].load_state_dict(layer.lora_A["a0"].state_dict())
        layer.lora_B[name].load_state_dict(layer.lora_B["a0"].state_dict())
    model.add_weighted_adapter(names, [1 / copies] * copies, "mean", combination_type=how, density=1.0)
    one, mean = layer.get_delta_weight("a0"), layer.get_delta_weight("mean")
    share = ((mean * one).sum() / one.square().sum()).item()
    return share, ((mean - share * one).norm() / one.norm()).item()


as_told = True
for copies in (1, 2, 4):
    for how, times in (("cat", 1), ("svd", 1), ("linear", copies), ("magnitude_prune", copies)):
        share, rest = combined(copies, how)
        print(f"mean of {copies} copies by {how}: {share:.4f} times the adapter")
        as_told &= math.isclose(share, times, rel_tol=1e-4) and rest < 1e-4
sys.exit(not as_told)
PYTHON
