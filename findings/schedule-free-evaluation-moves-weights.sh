#!/usr/bin/env bash
# Evaluating a model that learns by Schedule-Free AdamW changes its weights, and so the rest of the run.
#
# Guessed:  optimizer.eval() and optimizer.train(), with nothing between them, give the same weights back; only where
#           they are forgotten is something wrong.
# Happens:  of 4,096 weights some come back another, in float32 by the last bit and in bfloat16 too; two runs of the same
#           batches of which one was evaluated end with other bits.
# Why:      schedulefree/adamw_schedulefree.py, train and eval interpolate in place between the point where gradients are
#           taken and the average; nothing is kept aside, and two interpolations round twice.
# Matters:  "the same run, evaluated more often" is another run; whether a checkpoint was taken in eval mode shows in bits.
# Versions: schedulefree 1.4.1, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 schedulefree==1.4.1 numpy==2.4.6

python - <<'PYTHON'
import sys

import schedulefree
import torch


def run(dtype, evaluated):
    """Take 40 steps; give the weights at the end, and how many came back another from one evaluation."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, bias=False).to(dtype)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3)
    inputs, wanted = torch.randn(2, 32, 64).to(dtype)
    changed = 0
    optimizer.train()
    for step in range(40):
        (model(inputs) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if evaluated and step == 19:
            before = model.weight.clone()
            optimizer.eval()
            optimizer.train()
            changed = (model.weight != before).sum().item()
    return model.weight.detach(), changed


as_told = True
for dtype in (torch.float32, torch.bfloat16):
    alone, _ = run(dtype, evaluated=False)
    again, _ = run(dtype, evaluated=False)
    looked_at, changed = run(dtype, evaluated=True)
    other = (alone != looked_at).sum().item()
    print(f"{dtype}: {changed} of {alone.numel()} weights changed by an evaluation, {other} other at the end")
    as_told &= torch.equal(alone, again) and changed > 0 and other > 0
sys.exit(not as_told)
PYTHON
