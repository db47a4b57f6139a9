"""Weights that do not learn -> held in the number format that passes compute in."""

import torch
from torch import nn


def fixed_matrices(model: nn.Module) -> list[nn.Parameter]:
    """List the matrices of linear layers that do not learn and that nothing else reads.

    A head that is the embedding too is not among them: an embedding hands its numbers on as they
    are held, and all layers behind it would add to fewer digits.
    """
    kinds: dict[int, bool] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            is_alone = kinds.get(id(weight), True)
            kinds[id(weight)] = is_alone and isinstance(module, nn.Linear)
    fixed = [one for one in model.parameters() if kinds[id(one)] and not one.requires_grad]
    return [one for one in fixed if one.dim() == 2]


def hold_fixed_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the fixed matrices of linear layers in `dtype`.

    Autocast would round them at every use: the same bits come out, for half the memory and none of
    the copies. Only what learns needs more digits than a pass has.

    Args:
        model: whose rules are assigned; weights in 4 bits stay as they are.
        dtype: of the passes.
    """
    for weight in fixed_matrices(model):
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
