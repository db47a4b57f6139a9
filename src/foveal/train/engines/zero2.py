"""Gradients and optimizer state cut over all processes, by DeepSpeed's engine: ZeRO stage 2."""

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import ConfigError
from foveal.machine import Precision
from foveal.train.engines.several_processes import GroupEngine

BUCKET_NUMBERS = 100_000_000
"""Gradients summed at one time, 400 MB; DeepSpeed's own five times as many gain little."""


class InFormat(nn.Module):
    """Computes in the run's number format; DeepSpeed switches off what stands around it."""

    def __init__(self, module: nn.Module, engine: GroupEngine) -> None:
        super().__init__()
        self.module = module
        self._format = engine.autocast

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""
        with self._format():
            return self.module(*inputs)


class ZeroEngine(GroupEngine):
    """DeepSpeed's ZeRO-2: a whole model in each process, a share of all that learning needs.

    Weights are float32 and computed with under autocast, as on every other engine, so that a run
    may go on from one to the other. ZeRO-3, which cuts the weights too, is what fsdp2 is for.
    """

    cuts_state = True

    def __init__(self, precision: Precision = "float32") -> None:
        deepspeed = import_deepspeed()
        super().__init__(precision)
        deepspeed.init_distributed(dist_init_required=False)
        self._optimizer: Any = None
        self._norm = nn.Parameter(torch.zeros((), device=self.device))
        self._seen_by_scaler = torch.optim.SGD([self._norm])

    def _wrap(self, module: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        return InFormat(module.to(self.device), self)

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Have DeepSpeed cut the optimizer's state; `module` is its engine from then on."""
        self.module, self._optimizer, *_ = import_deepspeed().initialize(
            model=self.module,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET_NUMBERS},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": None,
            },
        )
        wrapped: torch.optim.Optimizer = self._optimizer
        return wrapped

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        """Tell DeepSpeed which pass is a step's last."""
        self.module.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DeepSpeed takes their mean over the processes, a step wants their sum.

        It multiplies by the loss scale itself, and divides in its step; its own scaler would do so
        for weights of 16 bits alone.
        """
        scale = self.scaler.scale(torch.ones((), device=self.device))
        self._optimizer.override_loss_scale(float(scale))
        self.module.backward(loss * self.world_size)

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients together, over all processes, (), float32."""
        if self._optimizer is None:
            return super().gradient_norm()
        norm = float(self._optimizer.scaled_global_norm()) / self._optimizer.loss_scale
        # DeepSpeed says -1 where some gradient is not finite.
        return torch.tensor(norm if norm >= 0 else math.nan, device=self.device)

    def clip(self, optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
        """Have the gradients shortened in the step; returns their norm before it."""
        self._optimizer.clip_grad = largest
        norm = self.gradient_norm()
        # The scaler looks for gradients that are not finite, and would find none: these are cut.
        self._norm.grad = norm.clone()
        self.scaler.unscale_(self._seen_by_scaler)
        return norm

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step and forget the gradients."""
        self.module.step()
        self.scaler.update()

    def skip_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a step: DeepSpeed does when one of them is not finite."""
        for gradients in self._optimizer.averaged_gradients.values():
            for one in gradients or ():
                one.fill_(math.nan)
        self.module.step()
        self.scaler.update()

    def has_gradient(self, parameter: nn.Parameter) -> bool:
        """Tell whether a weight's gradient is anywhere other than zero, in any process."""
        from deepspeed.utils import safe_get_full_grad

        gradient = safe_get_full_grad(parameter)
        return gradient is not None and bool(gradient.any())

    def optimizer_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Iterator[tuple[str, Tensor | float]]:
        """Name the optimizer's state by what it is and whose, brought together from its shares."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_states()
        for name, parameter, state, share in self._states(model):
            for slot, value in state.items():
                cut = isinstance(value, Tensor) and value.shape == share.shape
                whole = safe_get_full_optimizer_state(parameter, slot) if cut else value
                yield f"{slot}/{name}", whole

    def restore_optimizer(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        stored: Iterable[tuple[str, Tensor | float]],
    ) -> None:
        """Put back what `optimizer_state` named: of each tensor this process's share."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._optimizer.refresh_fp32_params()  # its own copy of our share of the weights
        held = {name: (one, state, share) for name, one, state, share in self._states(model)}
        for key, value in stored:
            slot, _, owner = key.partition("/")
            parameter, state, share = held[owner]
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                state[slot] = value
                continue
            if slot not in state:
                state[slot] = torch.zeros_like(share)
                self._link_states()
            safe_set_full_optimizer_state(parameter, value.to(self.device), slot)

    def _link_states(self) -> None:
        # DeepSpeed links the states of the first group alone by itself.
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _states(
        self, model: nn.Module
    ) -> Iterator[tuple[str, nn.Parameter, dict[str, Any], Tensor]]:
        """Go through the learning weights: name, weight, the state and share of its group."""
        names = {one: name for name, one in model.named_parameters()}
        zero = self._optimizer
        for members, share in zip(
            zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
        ):
            for one in members:
                yield names[one], one, zero.optimizer.state[share], share

    def release(self) -> None:
        """Give every weight memory of its own again."""
        for one in self.parameters:
            one.data = one.detach().clone()


def import_deepspeed() -> Any:
    """Import DeepSpeed, quietly.

    Raises:
        ConfigError: it is not installed.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"engine=zero2 needs DeepSpeed ({error}): pip install 'foveal[deepspeed]'"
        ) from error
    # The pieces to be compiled at the first use: on a CPU minutes for sums that gloo does as well.
    deepspeed.ops.__compatible_ops__ = {}
    # It calls PyTorch by names that are going out of use, many times a step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\b")
    return deepspeed
