#!/usr/bin/env bash
# Asking torch for the state of an optimizer before its first step takes that step, and AdamW's next one is a quarter short.
#
# Guessed:  get_optimizer_state_dict reads; a run of which the start was saved too goes as the one that was not.
# Happens:  the state of a fresh AdamW says step 1, in the live optimizer as in the file, and its first update is 0.744 of
#           the learning rate instead of 1. NAdam's and RAdam's differ too, SGD's does not.
# Why:      torch/distributed/checkpoint/state_dict.py, _init_optim_state makes the state by a step with gradients of zero
#           and a learning rate of zero, and leaves the count: of beta 0.9 and 0.999 the corrections are those of step 2,
#           (0.1 / 0.19) / sqrt(0.001 / 0.001999) = 0.744. Once there is any state or gradient it does nothing.
# Matters:  "a checkpoint of step 0", or an application whose state is listed before training: other bits from the first
#           step on, with the same seed; and a schedule that counts by the optimizer's steps is one ahead.
# Versions: torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import math
import sys

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def first_step(kind, looked_at):
    """Give the mean size of the first update over the learning rate, and the count of steps before it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False).double()
    optimizer = kind(model.parameters(), lr=1e-3)
    if looked_at:
        get_optimizer_state_dict(model, optimizer)
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    before = model.weight.detach().clone()
    model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    return (model.weight.detach() - before).abs().mean().item() / 1e-3, steps


def adamw(parameters, lr):
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)


kinds = {"AdamW": adamw, "NAdam": torch.optim.NAdam, "RAdam": torch.optim.RAdam, "SGD": torch.optim.SGD}
seen = {}
for name, kind in kinds.items():
    (alone, _), (looked_at, steps) = first_step(kind, False), first_step(kind, True)
    seen[name] = (alone, looked_at)
    print(f"{name}: first update {alone:.4f} of the learning rate, after its state was read {looked_at:.4f}, steps {steps}")
wanted = (0.1 / 0.19) / math.sqrt(0.001 / 0.001999)
short = math.isclose(seen["AdamW"][0], 1, rel_tol=1e-6) and math.isclose(seen["AdamW"][1], wanted, rel_tol=1e-6)
others = {name for name, (alone, looked_at) in seen.items() if not math.isclose(alone, looked_at, rel_tol=1e-6)}
sys.exit(not (short and others == {"AdamW", "NAdam", "RAdam"}))
PYTHON
