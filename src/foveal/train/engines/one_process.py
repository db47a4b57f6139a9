"""One process on one device: forward, backward and optimizer; the verbs of every engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from foveal.errors import UserError
from foveal.machine import (
    DTYPES,
    LARGEST_KEPT_IF_SHORT_BYTES,
    Precision,
    keep_freed_memory,
    pick_device,
)

Item = TypeVar("Item")


class Engine:
    """Runs forward, backward and optimizer on one device; weights stay float32."""

    rank = 0
    world_size = 1
    copies = 1
    """Of what is cut, over all processes."""

    cuts_state = False
    """Whether weights, or what an optimizer keeps of them, are cut over the processes."""

    gathers_blocks = False
    """Whether processes bring a block's weights together whenever it runs: all as often, or never
    to an end."""

    def __init__(
        self, precision: Precision = "float32", device: torch.device | None = None
    ) -> None:
        self.device = device or pick_device()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.precision = precision
        # Begins low: a step whose gradients overflow is lost, and the scale grows by itself.
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=2.0**10, enabled=precision == "fp16"
        )
        self.module: Any = None
        self.parameters: list[nn.Parameter] = []

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def prepare(self, module: nn.Module, blocks: Sequence[nn.Module] = ()) -> nn.Module:
        """Move a module to the device and make it ready to learn; its copies begin equal.

        Args:
            module: all that learns.
            blocks: its repeated parts, which an engine may hold apart from each other.
        """
        self.module = self._wrap(module, blocks)
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        wrapped: nn.Module = self.module
        return wrapped

    def _wrap(self, module: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        return module.to(self.device)

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Take over the optimizer of the prepared module; `module` is what to run from then on."""
        return optimizer

    def spare_memory(self) -> None:
        """Hold less at the price of some speed: for models that recompute to fit."""
        if self.device.type == "cpu":
            keep_freed_memory(LARGEST_KEPT_IF_SHORT_BYTES)

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

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Surround forward passes that no backward pass follows."""
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of the loss.

        A row of words alone has none where the tower alone learns: it teaches nothing.
        """
        scaled = self.scaler.scale(loss)
        if scaled.requires_grad:
            scaled.backward()

    def clip(self, optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
        """Shorten the gradients of the whole step to `largest`; returns their norm before it."""
        # A weight that no row of the step used has the gradient zero. Left out, AdamW would not
        # even decay it, and engines that share gradients would differ from one process.
        for one in self.parameters:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        self.scaler.unscale_(optimizer)
        norm = self.gradient_norm()
        if norm.isfinite():  # else they are dropped, and first looked at
            torch.nn.utils.clip_grads_with_norm_(self.parameters, largest, norm)
        return norm

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients together, (), float32."""
        return norm_of([one.grad for one in self.parameters if one.grad is not None]).float()

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step and forget the gradients."""
        self.scaler.step(optimizer)
        self.skip_step(optimizer)

    def skip_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a step."""
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def has_gradient(self, parameter: nn.Parameter) -> bool:
        """Tell whether a weight's gradient is anywhere other than zero; all processes ask alike."""
        return parameter.grad is not None and bool(self.whole_tensor(parameter.grad.any()))

    def whole_tensor(self, tensor: Tensor) -> Tensor:
        """Bring a weight or a part of an optimizer's state together, in all processes alike."""
        return tensor

    def share_of(self, value: Tensor, parameter: Tensor) -> Tensor:
        """Move a whole tensor to where a weight is; of a sharded weight's, keep our share."""
        return value.to(parameter.device) if value.dim() else value

    def optimizer_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Iterator[tuple[str, Tensor | float]]:
        """Name the optimizer's state by what it is and whose: `exp_avg/lm_head.weight`."""
        names: dict[Tensor, str] = {one: name for name, one in model.named_parameters()}
        for parameter, state in optimizer.state.items():
            for slot, value in state.items():
                yield f"{slot}/{names[parameter]}", value

    def restore_optimizer(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        stored: Iterable[tuple[str, Tensor | float]],
    ) -> None:
        """Put back what `optimizer_state` named, bit for bit; the weights are back already."""
        parameters = dict(model.named_parameters())
        groups = optimizer.state_dict()["param_groups"]
        members = [one for group in optimizer.param_groups for one in group["params"]]
        numbers = {parameter: number for number, parameter in enumerate(members)}
        states: dict[int, dict[str, Tensor | float]] = {}
        for key, value in stored:
            slot, _, owner = key.partition("/")
            held = self.share_of(value, parameters[owner]) if isinstance(value, Tensor) else value
            states.setdefault(numbers[parameters[owner]], {})[slot] = held
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        for number, state in states.items():
            loaded = optimizer.state[members[number]]
            for slot, held in state.items():
                # torch rounds what it loads to the weight's format, whatever was kept in.
                if isinstance(held, Tensor) and held.dtype != loaded[slot].dtype:
                    loaded[slot] = held.to(loaded[slot].device)

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """What fp16 multiplies the loss by, and how long it has stood; none in other formats."""
        return self.scaler.state_dict() or None

    @loss_scale.setter
    def loss_scale(self, stored: Mapping[str, float] | None) -> None:
        if stored:
            self.scaler.load_state_dict(dict(stored))

    @contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """Have every weight whole in each process, so that each runs the model on its own."""
        yield

    def release(self) -> None:
        """Give the main process its module back, plain and whole; nothing is run after this."""

    def add_up(self, values: list[float]) -> list[float]:
        """Add numbers over all processes."""
        return values

    def largest(self, value: int) -> int:
        """Find the largest number that any process has."""
        return value

    def gather(self, items: list[Item]) -> list[Item]:
        """Bring the items of all processes together, in the order of their ranks."""
        return items

    def wait(self) -> None:
        """Wait until every process is here."""

    def alike(self, work: Callable[[], Item]) -> Item:
        """Do some work that is each process's own; all know alike if it fails in one.

        Raises:
            UserError, OSError: of the first process that has one, in every process.
        """
        made, failure = [], None
        try:
            made.append(work())
        except (UserError, OSError) as error:
            failure = error
        if self.add_up([float(failure is not None)])[0]:
            raise self.gather([failure] if failure else [])[0]
        return made[0]

    def by_main(self, work: Callable[[], Item]) -> Item | None:
        """Let the main process do some work while the others wait; see `alike`."""
        return self.alike(lambda: work() if self.is_main else None)

    def abort(self) -> None:
        """Behind an error of this process alone: take the others down with it."""

    def close(self) -> None:
        """Leave the group of processes."""


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Norm of tensors together, (), float64.

    In float32 the norm of millions of numbers is off by 1e-5, and engines that hold them in other
    pieces would differ by as much. So rows, which no engine cuts, are summed in float32 and the
    rest in float64: off by 1e-8 on numbers that differ. All of it in float64 takes a CPU a
    twentieth of a step.
    """
    norms = [torch.linalg.vector_norm(_row_norms(one), dtype=torch.float64) for one in tensors]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _row_norms(tensor: Tensor) -> Tensor:
    """Norms along the last dimension, in float32 at least; a vector as it is."""
    if tensor.dim() < 2:
        return tensor
    at_least = torch.promote_types(tensor.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=-1, dtype=at_least)
    return norms
