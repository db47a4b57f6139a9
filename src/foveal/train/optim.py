"""Assignments -> an optimizer and the rate of each step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from foveal.adapt.strategy import Assignment
from foveal.config import TrainSettings
from foveal.errors import ConfigError


def build_optimizer(
    model: nn.Module, assignments: Sequence[Assignment], settings: TrainSettings
) -> torch.optim.Optimizer:
    """Group the learning weights by rate and decay.

    Each group keeps its highest rate as `peak`, which the schedule scales.

    Raises:
        ConfigError: the optimizer cannot work on weights that are cut over processes.
    """
    parameters = dict(model.named_parameters())
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for one in assignments:
        if one.learn:
            key = (one.learning_rate, one.weight_decay)
            grouped.setdefault(key, []).append(parameters[one.name])
    groups: list[dict[str, Any]] = [
        {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), members in grouped.items()
    ]
    cut = any(isinstance(one, DTensor) for one in parameters.values())
    if cut and settings.optimizer != "adamw":
        raise ConfigError(
            f"train.optimizer={settings.optimizer} needs whole weights, engine=fsdp2 cuts them; "
            "use train.optimizer=adamw or engine=ddp"
        )
    return OPTIMIZERS[settings.optimizer](groups, settings)


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


OPTIMIZERS = {"adamw": _adamw, "adamw_8bit": _adamw_8bit, "adafactor": _adafactor}


def rate_scale(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Share of the highest rate that step `step`, counted from 0, uses.

    Climbs from zero over the warm-up and then falls to zero, as transformers'
    `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` do.
    """
    warmup = settings.warmup_steps
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
