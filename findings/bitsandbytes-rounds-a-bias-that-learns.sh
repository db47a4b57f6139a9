#!/usr/bin/env bash
# A 4-bit layer's float32 bias becomes bfloat16 when the layer first answers, and then hardly learns.
#
# Guessed:  `bnb_4bit_compute_dtype=bfloat16` is the format that a layer computes in; what is not packed keeps its own.
# Happens:  one pass, also under no_grad, turns the bias into bfloat16 for good. 200 steps of SGD that should move it
#           by 0.2 leave every number of it where it was; a bias that is not near 1 stops wherever a step is less than
#           half of its last digit. The optimizer holds the same parameter and is told nothing.
# Why:      bitsandbytes/nn/modules.py, Linear4bit.forward: where bias.dtype differs from that of the rounded input it
#           sets bias.data = bias.data.to(...), in place, under a remark that asks whether it has to.
# Matters:  LoRA with bias="all" or "lora_only" and full learning of biases beside 4-bit weights (Qwen2.5-VL's queries,
#           keys and values, all of a SigLIP or CLIP tower); what is saved afterwards is rounded too, though nothing trained.
# Versions: bitsandbytes 0.50.2, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from bitsandbytes.nn import Linear4bit

torch.manual_seed(0)
layer = Linear4bit(64, 64, bias=True, compute_dtype=torch.bfloat16, quant_type="nf4")
layer.bias = torch.nn.Parameter(torch.linspace(1.001, 1.999, 64))
layer.to("cpu")
layer.train()
before = layer.bias.detach().clone()
held = {"before": layer.bias.dtype}
with torch.no_grad():
    layer(torch.randn(1, 64))
held["after a pass that learns nothing"] = layer.bias.dtype
print(*(f"{when}: {kind}" for when, kind in held.items()), sep=", ")
rounded = layer.bias.detach().clone()

steps, step = 200, 1e-3
optimizer = torch.optim.SGD([layer.bias], lr=step)
for _ in range(steps):
    layer(torch.randn(1, 64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
moved = (layer.bias.detach().float() - rounded.float()).abs().max().item()
lost = (rounded.float() - before).abs().max().item()
print(f"{steps} steps of {step}: moved by {moved}, where float32 moves by {steps * step:.1f}; rounding alone took {lost:.4f}")
narrowed = list(held.values()) == [torch.float32, torch.bfloat16]
sys.exit(not (narrowed and moved == 0 and lost > 1e-3))
PYTHON
