"""Weights that do not learn -> held in the number format that passes compute in."""

import torch
from torch import nn


def hold_fixed_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the fixed matrices of linear layers in `dtype`.

    Autocast would round them at every use: the same bits come out, for half the memory and none of
    the copies. Only what learns needs more digits than a pass has.

    Args:
        model: whose rules are assigned; weights in 4 bits stay as they are.
        dtype: of the passes.
    """
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight
        if weight.is_floating_point() and not weight.requires_grad:
            weight.data = weight.data.to(dtype)
