"""A model without weights + the real rules -> what is held, and how much of it learns."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveal.adapt.quantize import Shape, bare_model, quantized_layers
from foveal.adapt.strategy import Assignment, assign
from foveal.config import LoraSettings, Rule
from foveal.models.family import Family

QUANTIZED_BLOCK, QUANTIZED_GROUP = 64, 256
"""Weights that share a scale, and scales that share one (Dettmers et al., QLoRA, section 3)."""

FOUR_BIT_BYTES = 0.5 + (1 + 4 / QUANTIZED_GROUP) / QUANTIZED_BLOCK
"""Of a weight in 4 bits whose scales are held in 8: 4.127 bits."""


@dataclass(frozen=True)
class Assigned:
    """A model without weights whose rules are assigned, its adapters beside its layers."""

    model: Any
    family: Family
    assignments: Sequence[Assignment]
    packed: frozenset[str]
    """Names of the layers in 4 bits."""

    def is_packed(self, name: str) -> bool:
        """Tell whether a weight is held in 4 bits."""
        layer = name.removesuffix(".weight").removesuffix(".base_layer")
        return name.endswith(".weight") and layer in self.packed


@dataclass(frozen=True)
class Holdings:
    """Numbers that a process has to hold, by what is done with them."""

    whole: int
    """In the run's own width, adapters not counted."""

    four_bit: int
    learnt: int
    """With a gradient and an optimizer's two moments: weights, or adapters."""

    learnt_tensors: int
    adapters: int
    learnt_linear: int
    """Of linear layers, that autocast copies to 16 bits once a pass."""

    frozen_linear: int
    """Of linear layers, that autocast copies to 16 bits at each use."""

    unread_linear: int
    """Of linear layers that no forward pass reads."""

    largest_block: int
    """Numbers of the largest repeated layer, adapters included."""

    outside_blocks: int
    """Numbers that stand in no repeated layer: embedding, head, projector."""


def assign_without_weights(
    config: Any,
    family: Family,
    rules: Sequence[Rule],
    lora: LoraSettings,
    whole: Collection[Shape] = (),
) -> Assigned:
    """Decide for every weight as a run does, by the same code.

    Args:
        config: of the model.
        family: of the model.
        rules: of the strategy; the first that matches decides.
        lora: of the adapters.
        whole: shapes that are never held in 4 bits, whatever the rules say.

    Raises:
        ConfigError: a rule decides for no weight, or nothing learns.
    """
    model = bare_model(config)
    packed = quantized_layers(model, family, rules, whole)
    with torch.device("meta"):
        assignments = assign(model, family, rules, 0.0, 0.0, lora)
    return Assigned(model, family, assignments, frozenset(packed))


def count_holdings(made: Assigned) -> Holdings:
    """Add up the fates of all weights."""
    model, family = made.model, made.family
    elements = {one.name: one.elements for one in made.assignments}
    learnt = [one for one in made.assignments if one.learn]
    adapters = sum(one.elements for one in made.assignments if one.rank is not None)
    four_bit = sum(count for name, count in elements.items() if made.is_packed(name))
    linear = [f"{name}.weight" for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    learns = {one.name for one in learnt}
    # A head that is the embedding too stands among the parameters once, under that name.
    frozen = [one for one in linear if one not in learns and not made.is_packed(one)]
    frozen = [one for one in frozen if one in elements]
    unread = sum(elements[one] for one in frozen if family.is_unused(model, one))
    blocks = [sum(one.numel() for one in block.parameters()) for block in family.blocks(model)]
    return Holdings(
        whole=sum(elements.values()) - adapters - four_bit,
        four_bit=four_bit,
        learnt=sum(one.elements for one in learnt),
        learnt_tensors=len(learnt),
        adapters=adapters,
        learnt_linear=sum(elements[one] for one in linear if one in learns),
        frozen_linear=sum(elements[one] for one in frozen) - unread,
        unread_linear=unread,
        largest_block=max(blocks, default=0),
        outside_blocks=sum(elements.values()) - sum(blocks),
    )
