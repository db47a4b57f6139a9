"""Assignments -> an optimizer and the rate of each step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.adapt.strategy import Assignment
from foveal.config import TrainSettings
from foveal.errors import ConfigError

WORK_ON_CUTS = ("adamw",)
"""Optimizers that take each number by itself: cuts change nothing."""


def build_optimizer(
    model: nn.Module,
    assignments: Sequence[Assignment],
    settings: TrainSettings,
    cuts_state: bool = False,
) -> torch.optim.Optimizer:
    """Group the learning weights by rate and decay.

    Each group keeps its highest rate as `peak`, which the schedule scales.

    Raises:
        ConfigError: the optimizer cannot work on weights that are cut over processes.
    """
    parameters = dict(model.named_parameters())
    hidden = hidden_matrices(model)
    grouped: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for one in assignments:
        if one.learn:
            weight = parameters[one.name]
            key = (one.learning_rate, one.weight_decay, weight in hidden)
            grouped.setdefault(key, []).append(weight)
    groups: list[dict[str, Any]] = [
        {"params": members, "lr": rate, "peak": rate, "weight_decay": decay, "hidden": is_hidden}
        for (rate, decay, is_hidden), members in grouped.items()
    ]
    if cuts_state:
        check_cuts(settings.optimizer)
    return OPTIMIZERS[settings.optimizer](groups, settings)


def check_cuts(optimizer: str) -> None:
    """Refuse an optimizer that cannot work on weights that are cut over processes.

    Raises:
        ConfigError: it cannot.
    """
    if optimizer not in WORK_ON_CUTS:
        raise ConfigError(
            f"train.optimizer={optimizer} needs whole weights, and engine=fsdp2 or zero2 "
            "hands it cut ones; use train.optimizer=adamw or engine=ddp"
        )


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Find the weights of all linear layers but the head, whose rows are words."""
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    }


def _adamw(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.epsilon, fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    betas = (settings.beta1, settings.beta2)
    made: torch.optim.Optimizer = AdamW8bit(groups, betas=betas, eps=settings.epsilon)
    return made


def _adafactor(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    from transformers import Adafactor

    # The recipe's rate as it is, as with AdamW, not one that follows from the weights' size.
    made: torch.optim.Optimizer = Adafactor(groups, scale_parameter=False, relative_step=False)
    return made


def _muon(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    from foveal.train.muon import build_muon

    return build_muon(groups, (settings.beta1, settings.beta2), settings.epsilon)


OPTIMIZERS = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "muon": _muon,
}


def count_steps(steps_per_epoch: int, settings: TrainSettings) -> int:
    """Count the steps of a whole run."""
    steps = max(1, round(steps_per_epoch * settings.epochs))
    return min(steps, settings.max_steps or steps)


WARMUP_SHARE = 0.5
"""Largest share of a run's steps in which the rate climbs."""


def warmup_steps(total_steps: int, settings: TrainSettings) -> int:
    """Steps in which the rate climbs from zero, in a run of so many."""
    return min(settings.warmup_steps, int(WARMUP_SHARE * total_steps))


def rate_scale(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Share of the highest rate that step `step`, counted from 0, uses.

    Climbs from zero over the warm-up and then falls to zero, as transformers'
    `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` do. A warm-up longer
    than half of the run is cut to that: a short run would end before it has learnt anything.
    """
    warmup = warmup_steps(total_steps, settings)
    if step < warmup:
        return step / max(1, warmup)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    if settings.schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    return max(0.0, 1.0 - done)


def set_rate(optimizer: torch.optim.Optimizer, scale: float) -> float:
    """Set each group's rate to its share; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale
    return max(float(group["lr"]) for group in optimizer.param_groups)
