#!/usr/bin/env bash
# PEFT's hot swap of an adapter sets every layer's scale as if it had no rank_pattern and no alpha_pattern.
#
# Guessed:  hotswap_adapter puts in an adapter as loading it does: it reads both patterns, and refuses what does not fit.
# Happens:  with alpha_pattern={"1": 32} (r=4, lora_alpha=8) a layer's scale goes from 8 to 2, with rank_pattern={"1": 2}
#           from 4 to 2; also where an adapter is swapped for itself. Adapters without patterns swap as they should.
# Why:      peft/utils/hotswap.py, hotswap_adapter_from_state_dict looks the patterns up by the weight's name,
#           "...1.lora_A.default.weight"; peft/utils/other.py, get_pattern_key wants a pattern at the name's end, so none
#           matches and lora_alpha / r is written.
# Matters:  servers that swap adapters under a compiled model. Layers with a rank of their own (a tower at 4, words at 16)
#           come out stronger or weaker, with no error; the same files loaded anew are right.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

PATTERNS = {
    "no pattern": {},
    "alpha_pattern": {"alpha_pattern": {"1": 32}},
    "rank_pattern": {"rank_pattern": {"1": 2}},
}


def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))


def scales(model):
    return [layer.scaling["default"] for layer in model.base_model.model]


seen = {}
for name, patterns in PATTERNS.items():
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1"], init_lora_weights=False, **patterns)
    get_peft_model(base(), config).save_pretrained(name)
    model = PeftModel.from_pretrained(base(), name).eval()
    inputs = torch.ones(1, 8)
    with torch.no_grad():
        loaded, before = scales(model), model(inputs)
        hotswap_adapter(model, name, "default", torch_device="cpu")
        swapped, after = scales(model), model(inputs)
    seen[name] = (loaded, swapped)
    moved = (after - before).abs().max().item()
    print(f"{name}: scales loaded {loaded}, swapped for itself {swapped}; outputs move by {moved:.4f}")
wanted = {"no pattern": [2, 2], "alpha_pattern": [2, 8], "rank_pattern": [2, 4]}
sys.exit(seen != {name: (loaded, [2, 2]) for name, loaded in wanted.items()})
PYTHON
