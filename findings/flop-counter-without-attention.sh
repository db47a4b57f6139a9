#!/usr/bin/env bash
# torch's FlopCounterMode counts no attention on a processor, and experts nowhere.
#
# Guessed:  it counts a layer's operations, so one and the same layer has one count, on a processor as on the meta device.
# Happens:  attention over 512 tokens is 268,435,456 FLOPs on meta and with the math kernel on a processor, and 0 with the
#           kernel that a processor takes by itself; its backward pass too. grouped_mm, which a mixture's experts run
#           through, is 0 on either, nn.LSTM is 0, and nn.MultiheadAttention is 0 once it is in eval mode without gradients.
# Why:      torch/utils/flop_counter.py, flop_registry has no formula for _scaled_dot_product_flash_attention_for_cpu,
#           _grouped_mm, mkldnn_rnn_layer and _native_multi_head_attention, and an operation without one counts 0.
# Matters:  whoever reckons a step's cost or its MFU by it: of a mixture's layer only the router and the attention's four
#           matrices are left, and on a processor the part that grows with the square of an image's tokens is missing.
# Versions: torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def attend(device, backward=False):
    heads = torch.zeros(1, 8, 512, 32, device=device, requires_grad=True)
    out = F.scaled_dot_product_attention(heads, heads, heads)
    if backward:
        out.sum().backward()


def attend_by_math():
    with sdpa_kernel(SDPBackend.MATH):
        attend("cpu")


def experts(device):
    """32 tokens, the first half for one expert, the second for another."""
    tokens = torch.zeros(32, 64, device=device, dtype=torch.bfloat16)
    matrices = torch.zeros(2, 64, 128, device=device, dtype=torch.bfloat16)
    F.grouped_mm(tokens, matrices, offs=torch.tensor([16, 32], device=device, dtype=torch.int32))


def module(make, gradients):
    layer, inputs = make.eval(), torch.zeros(2, 32, 64)
    with torch.set_grad_enabled(gradients):
        layer(*[inputs] * (3 if isinstance(layer, torch.nn.MultiheadAttention) else 1))


def heads():
    return torch.nn.MultiheadAttention(64, 4, batch_first=True)


seen = {
    "attention on meta": count(lambda: attend("meta")),
    "attention on cpu": count(lambda: attend("cpu")),
    "attention on cpu, math kernel": count(attend_by_math),
    "attention and its backward on meta": count(lambda: attend("meta", backward=True)),
    "attention and its backward on cpu": count(lambda: attend("cpu", backward=True)),
    "experts on meta": count(lambda: experts("meta")),
    "experts on cpu": count(lambda: experts("cpu")),
    "their product written as one matrix": count(lambda: torch.zeros(32, 64) @ torch.zeros(64, 128)),
    "LSTM": count(lambda: module(torch.nn.LSTM(64, 64), True)),
    "MultiheadAttention, eval mode": count(lambda: module(heads(), True)),
    "MultiheadAttention, eval mode, no gradients": count(lambda: module(heads(), False)),
}
for name, flops in seen.items():
    print(f"{name}: {flops:,}")
once = 2 * 2 * 8 * 512 * 512 * 32  # two products
wanted = [once, 0, once, None, 0, 0, 0, 2 * 32 * 64 * 128, 0, None, 0]
right = [flops > 0 if told is None else flops == told for flops, told in zip(seen.values(), wanted, strict=True)]
sys.exit(not all(right))
PYTHON
