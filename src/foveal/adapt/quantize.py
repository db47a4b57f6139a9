"""Rules -> which linear layers a model holds in 4 bits, and how bitsandbytes shall hold them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foveal.adapt.strategy import first_match
from foveal.config import QuantizationSettings, Rule
from foveal.models.family import Family, find_family

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plan_quantization(
    name: str, rules: Sequence[Rule], settings: QuantizationSettings, precision: str
) -> Any:
    """Say which layers of a model are read straight into 4 bits.

    With it, transformers builds the model without weights, and reads, quantizes and drops one
    tensor after the other: memory stays near the size of the model in 4 bits.

    Args:
        name: folder or hub name of the model.
        rules: of the strategy.
        settings: of the recipe.
        precision: that the layers compute in, unless the settings name one.

    Returns:
        transformers' BitsAndBytesConfig; none: nothing is quantized.
    """
    if not any(rule.quantize for rule in rules):
        return None
    from transformers import BitsAndBytesConfig

    model = skeleton(name)
    chosen = quantized_layers(model, find_family(name), rules)
    kept = [layer for layer, _ in _linear_layers(model) if layer not in chosen]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=DTYPES[settings.compute or precision],
        bnb_4bit_use_double_quant=settings.double,
        # Patterns, which transformers matches from a name's beginning up to a dot, or as its end.
        llm_int8_skip_modules=[f"^{re.escape(layer)}$" for layer in kept],
    )


def skeleton(name: str) -> Any:
    """Build a model without weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(name))


def quantized_layers(model: nn.Module, family: Family, rules: Sequence[Rule]) -> set[str]:
    """Name the linear layers whose rule says so; never the head, whose errors are the answer's."""
    head = family.head(model)
    chosen = set()
    for name, layer in _linear_layers(model):
        rule = first_match(family.part_name(f"{name}.weight"), rules)
        if rule and rule.quantize and layer is not head:
            chosen.add(name)
    return chosen


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, one) for name, one in model.named_modules() if type(one) is nn.Linear]


def is_quantized(model: nn.Module) -> bool:
    """Tell whether any layer of a model is held in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def keep_layout(model: nn.Module) -> None:
    """Keep 4-bit layers trainable on every CPU.

    On one with AVX-512 bf16, bitsandbytes repacks a layer when it first answers, for a kernel that
    has no backward pass; a run that evaluates before it trains would then train on no gradient.
    """
    if is_quantized(model):
        for one in model.modules():
            if hasattr(one, "support_avx512bf16_for_cpu"):
                one.support_avx512bf16_for_cpu = False
