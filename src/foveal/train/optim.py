"""Assignments -> AdamW and the rate of each step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foveal.adapt.strategy import Assignment
from foveal.config import TrainSettings


def build_optimizer(
    model: nn.Module, assignments: Sequence[Assignment], settings: TrainSettings
) -> torch.optim.AdamW:
    """Group the learning weights by rate and decay.

    Each group keeps its highest rate as `peak`, which the schedule scales.
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
    return torch.optim.AdamW(
        groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True
    )


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
