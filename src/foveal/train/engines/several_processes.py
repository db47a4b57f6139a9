"""Several processes: what their engines have in common, and PyTorch's data parallel one."""

import atexit
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foveal.machine import Precision, pick_device
from foveal.train.engines.one_process import Engine, Item
from foveal.train.engines.peers import Companions

LET_GO_SECONDS = 0.5
"""Time for Gloo's threads to let go of the last tensors that they sent.

They take Python's lock for it, and one that asks while the interpreter ends aborts the process.
`destroy_process_group` waits for them only if nothing else holds the group; DTensor's caches do
(torch 2.13: `ProcessGroupGloo::runLoop`, `DTensorRedistributePlanner`).
"""


class GroupEngine(Engine):
    """What engines of several processes have in common."""

    def __init__(self, precision: Precision = "float32") -> None:
        device = pick_device()
        begins = not dist.is_initialized()
        if begins:
            if device.type == "cuda":
                dist.init_process_group("nccl", device_id=device)
            else:
                dist.init_process_group("gloo")
        super().__init__(precision, device)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._companions = Companions(self.rank, self.world_size) if begins else None
        if begins:
            atexit.register(self.close)

    def backward(self, loss: Tensor) -> None:
        """Add gradients; PyTorch takes their mean over the processes, a step wants their sum."""
        super().backward(loss * self.world_size)

    def add_up(self, values: list[float]) -> list[float]:
        """Add numbers over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def largest(self, value: int) -> int:
        """Find the largest number that any process has."""
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def gather(self, items: list[Item]) -> list[Item]:
        """Bring the items of all processes together, in the order of their ranks."""
        everyone: list[list[Item]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(everyone, items)
        return [item for some in everyone for item in some]

    def wait(self) -> None:
        """Wait until every process is here."""
        dist.barrier()

    def abort(self) -> None:
        """Behind an error of this process alone: take the others down with it.

        The error may come of another's death; that one is named first, and this process ended.
        """
        if self._companions:
            atexit.unregister(self.close)
            self._companions.settle()

    def close(self) -> None:
        """Leave the group of processes; at the end of the program that is done by itself."""
        atexit.unregister(self.close)
        if self.device.type == "cpu":
            time.sleep(LET_GO_SECONDS)
        if self._companions:
            self._companions.close()
        dist.destroy_process_group()


class DataParallelEngine(GroupEngine):
    """PyTorch's DistributedDataParallel: a copy of the model in each process."""

    def _wrap(self, module: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module.to(self.device), device_ids=ids)

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        """Share gradients in the last pass of a step alone."""
        wrapped: Any = self.module
        if last:
            yield
        else:
            with wrapped.no_sync():
                yield
