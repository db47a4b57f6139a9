"""One process or several behind the same few verbs; no other file asks which is running."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foveal.errors import ConfigError

Precision = Literal["float32", "bf16", "fp16"]
Item = TypeVar("Item")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Runs forward, backward and optimizer on one device; weights stay float32."""

    rank = 0
    world_size = 1

    def __init__(
        self, precision: Precision = "float32", device: torch.device | None = None
    ) -> None:
        self.device = device or pick_device()
        self.precision = precision
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.module: nn.Module | None = None
        self.parameters: list[nn.Parameter] = []

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and make it ready to learn; its copies begin equal."""
        self.module = self._wrap(module.to(self.device))
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        return self.module

    def _wrap(self, module: nn.Module) -> nn.Module:
        return module

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in the run's number format."""
        mixed = self.precision != "float32"
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=mixed):
            yield

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        """Surround one forward and backward pass; only the last of a step need be shared."""
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of the loss."""
        self.scaler.scale(loss).backward()

    def clip(self, optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
        """Shorten the gradients of the whole step to `largest`; returns their norm before it."""
        # A weight that no row of the step used has the gradient zero. Left out, AdamW would not
        # even decay it, and engines that share gradients would differ from one process.
        for one in self.parameters:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        self.scaler.unscale_(optimizer)
        return torch.nn.utils.clip_grad_norm_(self.parameters, largest)

    def advance(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step and forget the gradients."""
        self.scaler.step(optimizer)
        self.forget(optimizer)

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a step."""
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def add_up(self, values: list[float]) -> list[float]:
        """Add numbers over all processes."""
        return values

    def gather(self, items: list[Item]) -> list[Item]:
        """Bring the items of all processes together, in the order of their ranks."""
        return items

    def wait(self) -> None:
        """Wait until every process is here."""

    def close(self) -> None:
        """Leave the group of processes."""


class DataParallelEngine(Engine):
    """PyTorch's DistributedDataParallel: a copy of the model in each process."""

    def __init__(self, precision: Precision = "float32") -> None:
        device = pick_device()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        super().__init__(precision, device)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def _wrap(self, module: nn.Module) -> nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        """Share gradients in the last pass of a step alone."""
        wrapped: Any = self.module
        if last:
            yield
        else:
            with wrapped.no_sync():
                yield

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DDP takes their mean over the processes, a step wants their sum."""
        super().backward(loss * self.world_size)

    def add_up(self, values: list[float]) -> list[float]:
        """Add numbers over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def gather(self, items: list[Item]) -> list[Item]:
        """Bring the items of all processes together, in the order of their ranks."""
        everyone: list[list[Item]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(everyone, items)
        return [item for some in everyone for item in some]

    def wait(self) -> None:
        """Wait until every process is here."""
        dist.barrier()

    def close(self) -> None:
        """Leave the group of processes."""
        dist.destroy_process_group()


def pick_device() -> torch.device:
    """This process's accelerator, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    device = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(device.index)
    return device


def make_engine(name: str, precision: Precision) -> Engine:
    """Choose an engine by name; "auto" is DDP where a launcher started several processes.

    Raises:
        ConfigError: the launcher and the name do not fit.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if name == "auto":
        name = "ddp" if launched > 1 else "single"
    if name == "single" and launched > 1:
        raise ConfigError(f"engine=single under a launcher of {launched} processes; use engine=ddp")
    if name == "ddp" and "RANK" not in os.environ:
        raise ConfigError(
            "engine=ddp needs a launcher: torchrun --nproc-per-node N -m foveal.cli ..."
        )
    return Engine(precision) if name == "single" else DataParallelEngine(precision)
