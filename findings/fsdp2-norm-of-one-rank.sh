#!/usr/bin/env bash
# A sharded weight's norm().item() is that of one rank's part, and get_total_norm is so for some norms.
#
# Guessed:  item() of a DTensor gives the number of the whole tensor on every rank, or refuses.
# Happens:  under fully_shard on two ranks norm().item(), sum(), max(), mean() and
#           get_total_norm(norm_type=inf).item() give each rank its own share, without a word; the 2-norm of
#           get_total_norm, and of clip_grad_norm_ with it, is that of the whole.
# Why:      a reduction over a sharded axis is left in a Partial placement (torch/distributed/tensor/_ops), and
#           item() reads the local tensor; some operators resolve it first. full_tensor() is always right.
# Matters:  logged norms, checks for exploding gradients and clipping by value decide differently on each rank.
# Versions: torch 2.13.0, two processes on CPU (gloo).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 numpy==2.4.6

cat > shares.py <<'PYTHON'
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(8, 6, bias=False)
whole = model.weight.detach().clone()
fully_shard(model)
torch.manual_seed(1)
model(torch.randn(4, 8)).square().sum().backward()
weight, gradient = model.weight.detach(), model.weight.grad

right = {"norm": whole.norm(), "sum": whole.sum(), "max": whole.max(), "mean": whole.mean()}
got = {name: getattr(weight, name)() for name in right}
got["infinity norm of gradients"] = torch.nn.utils.get_total_norm([gradient], norm_type=float("inf"))
right["infinity norm of gradients"] = gradient.full_tensor().abs().max()
got["2-norm of gradients"] = torch.nn.utils.get_total_norm([gradient])
right["2-norm of gradients"] = gradient.full_tensor().norm()

wrong = set()
for name, one in got.items():
    assert isinstance(one, DTensor)
    items = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(items, torch.tensor(one.item()))
    torch.testing.assert_close(one.full_tensor(), right[name])
    if any(not torch.isclose(item, right[name]) for item in items):
        wrong.add(name)
    if dist.get_rank() == 0:
        print(f"{name}: item() by rank {[round(item.item(), 4) for item in items]}, whole {right[name].item():.4f}")
dist.destroy_process_group()
sys.exit(wrong != {"norm", "sum", "max", "mean", "infinity norm of gradients"})
PYTHON
torchrun --nproc-per-node 2 --master-addr 127.0.0.1 --master-port "$((20000 + $$ % 10000))" shares.py 2> errors || { cat errors >&2; exit 1; }
