#!/usr/bin/env bash
# transformers' Adafactor goes on otherwise after a checkpoint if the weights are bfloat16.
#
# Guessed:  state_dict() saved and loaded, the same batches: the same bits, as with AdamW, 8-bit AdamW and Muon.
# Happens:  five steps after the checkpoint, weights differ; right after loading, the second moments have gone from
#           float32 to bfloat16, and they stay so for the rest of the run. With float32 weights bits are equal.
# Why:      transformers/optimization.py, Adafactor.step makes its state in float32; torch/optim/optimizer.py,
#           _process_value_according_to_param_policy casts all loaded state but "step" to the weight's format.
# Matters:  any optimizer that keeps float32 state for half-precision weights and does not override
#           load_state_dict changes its numbers at the first stop of a run.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.6

python - <<'PYTHON'
import copy
import sys

import torch
from transformers import Adafactor


def resumed(make, dtype):
    """Tell whether a resumed run ends with the bits of one that was not stopped, and its state's format."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, bias=False).to(dtype)
    inputs, wanted = torch.randn(2, 32, 64).to(dtype)

    def steps(model, optimizer):
        for _ in range(5):
            (model(inputs) - wanted).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    first = make(model.parameters())
    steps(model, first)
    again = copy.deepcopy(model)
    second = make(again.parameters())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    state = second.state[again.weight]
    kept = {one.dtype for name, one in state.items() if name not in ("step", "RMS") and torch.is_tensor(one)}
    steps(model, first)
    steps(again, second)
    return torch.equal(model.weight, again.weight), kept.pop()


def adafactor(weights):
    return Adafactor(weights, lr=1e-3, relative_step=False, scale_parameter=False)


seen = {
    "Adafactor, bfloat16": resumed(adafactor, torch.bfloat16),
    "Adafactor, float32": resumed(adafactor, torch.float32),
    "AdamW, bfloat16": resumed(torch.optim.AdamW, torch.bfloat16),
}
for name, (equal, kept) in seen.items():
    print(f"{name}: {'equal bits' if equal else 'other weights'}, state after loading in {kept}")
sys.exit([equal for equal, _ in seen.values()] != [False, True, True])
PYTHON
