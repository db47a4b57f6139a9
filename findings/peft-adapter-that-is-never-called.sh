#!/usr/bin/env bash
# target_modules="all-linear" puts an adapter into SigLIP's pooling head that no gradient ever reaches.
#
# Guessed:  a linear layer that PEFT wraps takes part in the forward pass, and each adapter learns; or PEFT refuses it.
# Happens:  of SiglipVisionModel's adapters all have gradients but those of head.attention.out_proj: None, without a
#           warning. Set to anything they change nothing, until merge_adapter, which then changes the output.
# Why:      torch/nn/modules/activation.py, MultiheadAttention.forward hands out_proj.weight to
#           F.multi_head_attention_forward and never calls the module; peft/tuners/lora/layer.py answers .weight with
#           the base layer's.
# Matters:  SigLIP and SigLIP 2 with their pooling heads, Aria's projector; DistributedDataParallel stops at parameters
#           without gradients, and an adapter that holds something there is another model once it is merged.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6 pillow==13.0.0

python - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import SiglipVisionConfig, SiglipVisionModel

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
tower = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=8)).double()
adapted = get_peft_model(tower, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).double().eval()
pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)


def pooled():
    return adapted(pixel_values=pixels).pooler_output


pooled().square().sum().backward()
learns = {name: weight.grad is not None for name, weight in adapted.named_parameters() if weight.requires_grad}
still = [name.removeprefix("base_model.model.") for name, learnt in learns.items() if not learnt]
print(f"{len(learns)} matrices of adapters, without a gradient:", *still)
with torch.no_grad():
    before = pooled()
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and learns[name]:
            weight.zero_()
    alone = pooled()
    with adapted.disable_adapter():
        base = pooled()
    adapted.merge_adapter()
    merged = pooled()
off, merged_off = ((one - base).abs().max().item() for one in (alone, merged))
print(f"with nothing but that adapter the output is off by {off:.1e}, merged by {merged_off:.1e}")
never = len(still) == 2 < len(learns) and all(".attention.out_proj." in f".{name}" for name in still)
sys.exit(not (never and off == 0 and merged_off > 1e-3 and not torch.equal(before, base)))
PYTHON
