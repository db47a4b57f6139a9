#!/usr/bin/env bash
# Two groups that take their rate from AdamW(lr=torch.tensor(...)) share one rate: a schedule of two has the last one's.
#
# Guessed:  a rate given as a tensor, as compiled and capturable steps want it, is each group's own, as a number is.
# Happens:  LambdaLR with [1, 0.1] gives both groups a tenth; a halving of one group by hand halves the other; and with
#           [0.1, 1] neither learns slower. With lr=1e-3 the groups have 1e-3 and 1e-4.
# Why:      torch/optim/optimizer.py, Optimizer.add_param_group hands the default on as it is, so every group holds the
#           same tensor; torch/optim/lr_scheduler.py, _update_param_group_val writes into it.
# Matters:  a tower or projector that is to learn at another rate than the words. A rate of its own in each group
#           (lr=torch.tensor(...) within the group) is kept apart.
# Versions: torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import math
import sys

import torch


def updates(rate, shares, own=False):
    """Give how far the first step moves the weight of each of two groups."""
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": [weight]} | ({"lr": rate.clone()} if own else {}) for weight in weights]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _, share=share: share for share in shares])
    sum(weights).backward()
    optimizer.step()
    return [1 - weight.item() for weight in weights]


tensor = torch.tensor(1e-3)
seen = {
    "lr=1e-3, shares 1 and 0.1": updates(1e-3, [1, 0.1]),
    "lr=tensor, shares 1 and 0.1": updates(tensor.clone(), [1, 0.1]),
    "lr=tensor, shares 0.1 and 1": updates(tensor.clone(), [0.1, 1]),
    "lr=tensor in each group, shares 1 and 0.1": updates(tensor, [1, 0.1], own=True),
}
for name, moved in seen.items():
    print(f"{name}: the groups move by", *(f"{one:.6f}" for one in moved))
wanted = [(1e-3, 1e-4), (1e-4, 1e-4), (1e-3, 1e-3), (1e-3, 1e-4)]
pairs = [(a, b) for moved, right in zip(seen.values(), wanted, strict=True) for a, b in zip(moved, right, strict=True)]
sys.exit(not all(math.isclose(a, b, rel_tol=1e-2) for a, b in pairs))
PYTHON
