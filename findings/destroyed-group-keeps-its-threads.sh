#!/usr/bin/env bash
# A process group that was destroyed keeps its threads and its sockets once a sharded weight was brought together.
#
# Guessed:  destroy_process_group(), with the model gone as well, ends what Gloo runs; for both DDP and FSDP2.
# Happens:  after DDP no thread of Gloo is left. After fully_shard and one full_tensor() all of them are, for as
#           long as the process lives, though no object of the program holds model, mesh or group any more; also
#           with DTensor's two caches of sharding plans cleared by torch's own function.
# Why:      destroy_process_group drops torch's own references and waits for nothing (Gloo's shutdown does nothing);
#           the threads are joined where the group itself ends (ProcessGroupGloo::~ProcessGroupGloo). A DeviceMesh
#           holds its group (_pg_registry), and two more caches hold the mesh for good: a table of planners whose
#           keys are weak references, but whose values hold the mesh, and the steps of each redistribution, keyed by
#           specs with the mesh in them (torch/distributed/tensor/_redistribute.py: get_redistribute_planner,
#           _gen_transform_infos).
# Matters:  a thread that is late with the last tensor then meets an interpreter that is ending, and the run's exit
#           status is an abort though its work is done; tests and notebooks that make group after group collect
#           threads and sockets.
# Versions: torch 2.13.0, one process on CPU (gloo), Linux.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 numpy==2.4.6

cat > threads.py <<'PYTHON'
import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache


def threads():
    return sum((task / "comm").read_text().startswith("pt_gloo") for task in Path("/proc/self/task").iterdir())


def left_by(kind):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = torch.nn.Linear(8, 6, bias=False)
    if kind == "DDP":
        model = torch.nn.parallel.DistributedDataParallel(model)
    else:
        fully_shard(model)
    model(torch.ones(4, 8)).sum().backward()
    if kind == "FSDP2":
        model.weight.full_tensor()
    running = threads()
    assert running
    del model
    dist.destroy_process_group()
    _clear_sharding_prop_cache()
    gc.collect()
    print(f"{kind}: {running} threads of Gloo before, {threads()} after the group was destroyed")
    return threads(), running


after, _ = left_by("DDP")
kept, running = left_by("FSDP2")
sys.stdout.flush()
sys.exit(after != 0 or kept != running)
PYTHON
python threads.py
