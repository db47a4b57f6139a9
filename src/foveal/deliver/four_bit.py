"""Weights -> what 4 bits leave of them, in float32: the base that a QLoRA run learnt on."""

import torch
from torch import Tensor, nn


def through_four_bits(weight: Tensor) -> Tensor:
    """Quantise to NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314), and back.

    Args:
        weight: (outputs, inputs), of any number format.

    Returns:
        (outputs, inputs), float32.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.float().contiguous(), quant_type="nf4", compress_statistics=True
    )
    back: Tensor = dequantize_4bit(packed, state)
    return back.float().reshape(weight.shape)


@torch.no_grad()
def quantize_adapted_layers(model: nn.Module) -> None:
    """Put every layer that has an adapter through 4 bits; the adapters stay as they are."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            weight.copy_(through_four_bits(weight))
