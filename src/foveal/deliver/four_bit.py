"""Weights -> what 4 bits leave of them, in float32: the base that a QLoRA run learnt on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.nf4 import CODE, unpack


def through_four_bits(weight: Tensor, double: bool) -> Tensor:
    """Quantise to NF4 (Dettmers et al. 2023, arXiv:2305.14314), and back.

    Args:
        weight: (outputs, inputs), of any number format.
        double: whether the scales of its blocks are quantised too.

    Returns:
        (outputs, inputs), float32.
    """
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(
        weight.float().contiguous(), quant_type=CODE, compress_statistics=double
    )
    return unpack(packed, state)


@torch.no_grad()
def quantize_layers(model: nn.Module, layers: Sequence[str], double: bool) -> None:
    """Put the weights of some linear layers through 4 bits; adapters beside them stay."""
    for name in layers:
        layer: Any = model.get_submodule(name)
        plain = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        plain.weight.copy_(through_four_bits(plain.weight, double))
