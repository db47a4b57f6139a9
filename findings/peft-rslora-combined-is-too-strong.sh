#!/usr/bin/env bash
# An rsLoRA adapter of rank 16 "combined" by PEFT with nothing else and a weight of 1 is four times as strong.
#
# Guessed:  add_weighted_adapter(["a"], [1.0], "b") makes b the same change of the model as a, whatever scaled a.
# Happens:  with use_rslora=True b is a times the root of its rank: 2 at rank 4, 4 at rank 16, by "cat", "svd" and
#           "linear"; without use_rslora it is a.
# Why:      peft/tuners/lora/model.py, add_weighted_adapter puts each adapter's scaling into the new matrices and copies
#           the first one's configuration with lora_alpha = r, to make the new scaling 1; use_rslora is copied too, so
#           that it is r / root(r).
# Matters:  merging, averaging or changing the rank of rsLoRA adapters; the file that is saved is as strong.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import math
import sys

import torch
from peft import LoraConfig, get_peft_model


def strength(rank, rslora, how):
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=8, use_rslora=rslora, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False)), config, adapter_name="a")
    model.add_weighted_adapter(["a"], [1.0], "b", combination_type=how)
    layer = model.base_model.model[0]
    one, other = layer.get_delta_weight("a"), layer.get_delta_weight("b")
    times = (other.norm() / one.norm()).item()
    assert torch.allclose(other, times * one, atol=1e-4 * one.abs().max().item())
    return times


as_told = True
for rslora in (False, True):
    for rank in (4, 16):
        seen = {how: round(strength(rank, rslora, how), 4) for how in ("cat", "svd", "linear")}
        print(f"use_rslora={rslora}, rank {rank}: b over a {seen}")
        wanted = math.sqrt(rank) if rslora else 1
        as_told &= all(math.isclose(times, wanted, rel_tol=1e-3) for times in seen.values())
sys.exit(not as_told)
PYTHON
