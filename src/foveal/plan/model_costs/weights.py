"""A model without weights + the real rules -> what is held, and how much of it learns."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveal.adapt.quantize import Shape, bare_model, quantized_layers
from foveal.adapt.strategy import Assignment, assign, frozen_matrices
from foveal.config import LoraSettings, Rule
from foveal.models.family import Family
from foveal.train.optim import hidden_matrices

QUANTIZED_BLOCK, QUANTIZED_GROUP = 64, 256
"""Weights that share a scale, and scales that share one (Dettmers et al., QLoRA, section 3)."""

FULL_BYTES = 4
CODE_BYTES = 16 * FULL_BYTES
"""The code's numbers, that bitsandbytes holds beside each layer in 4 bits."""

SCALES_CODE_BYTES = 256 * FULL_BYTES + FULL_BYTES
"""The same of scales in 8 bits, and their mean."""


@dataclass(frozen=True)
class HeldTensor:
    """A weight, or a matrix of an adapter, before an engine cuts it."""

    rows: int
    """Along which FSDP2 cuts."""

    numbers: int
    kind: Literal["whole", "linear", "four_bit", "adapter"]
    """linear: a fixed one of a linear layer, which is held as passes compute."""

    learns: bool

    def share(self, parts: int = 1) -> int:
        """Count the numbers that the first process holds, who has most: whole rows."""
        return -(-self.rows // parts) * (self.numbers // self.rows)

    def packed_bytes(self, parts: int, double: bool) -> int:
        """Bytes in 4 bits: two numbers a byte, which alone are cut, and their scales."""
        scales = -(-self.numbers // QUANTIZED_BLOCK)
        packed = -(-((self.numbers + 1) // 2) // parts)
        if not double:
            return packed + FULL_BYTES * scales + CODE_BYTES
        coarse = FULL_BYTES * -(-scales // QUANTIZED_GROUP)
        return packed + scales + coarse + CODE_BYTES + SCALES_CODE_BYTES


@dataclass(frozen=True)
class Together:
    """What FSDP2 brings together at a time: a repeated layer, or all that stands in none."""

    numbers: int = 0
    """Not in 4 bits."""

    four_bit: int = 0
    learnt: int = 0

    def weights_bytes(self, number_bytes: int = FULL_BYTES) -> int:
        """Bytes of its weights, whole; two numbers in 4 bits share one."""
        return self.numbers * number_bytes + (self.four_bit + 1) // 2

    @property
    def gradients_bytes(self) -> int:
        """Bytes of its gradients before they are cut."""
        return self.learnt * FULL_BYTES


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
    """With a gradient and an optimizer's state: weights, or adapters."""

    learnt_tensors: int
    learnt_groups: Sequence[int]
    """Numbers of each of the optimizer's groups: of one rate, one decay and one kind."""

    optimizer_bytes: Mapping[str, int]
    """What an optimizer holds to let them learn, by its name."""

    adapters: int
    learnt_linear: int
    """Of linear layers, that autocast copies to 16 bits once a pass."""

    frozen_linear: int
    """Of linear layers that a pass reads, that autocast copies to 16 bits at each use."""

    largest_block: Together
    """The repeated layer that weighs most, adapters included."""

    outside_blocks: Together
    """What stands in no repeated layer: embedding, head, projector."""

    tensors: Sequence[HeldTensor]
    """All of them, one by one."""

    double: bool
    """Whether the scales of what is in 4 bits are held in 8."""

    def weights_bytes(self, fixed_bytes: int, parts: int = 1) -> int:
        """Bytes of all but adapters.

        Args:
            fixed_bytes: of a number of a linear layer that does not learn.
            parts: processes that each tensor is cut over.
        """
        total = 0
        for one in self.tensors:
            if one.kind == "four_bit":
                total += one.packed_bytes(parts, self.double)
            elif one.kind != "adapter":
                total += one.share(parts) * (fixed_bytes if one.kind == "linear" else FULL_BYTES)
        return total

    def adapters_share(self, parts: int = 1) -> int:
        """Numbers of adapters, each cut over so many processes."""
        return sum(one.share(parts) for one in self.tensors if one.kind == "adapter")

    def learnt_share(self, parts: int = 1) -> int:
        """Numbers that learn, each tensor cut over so many processes."""
        return sum(one.share(parts) for one in self.tensors if one.learns)


SMALLEST_IN_8_BITS, SCALED_BLOCK = 4096, 256
"""Numbers from which on bitsandbytes holds a tensor's moments in 8 bits, and that share a scale."""


def _adamw(weight: Tensor, _is_hidden: bool) -> int:
    return 2 * FULL_BYTES * weight.numel() + FULL_BYTES  # two moments, and a count of steps


def _adamw_8bit(weight: Tensor, _is_hidden: bool) -> int:
    numbers = weight.numel()
    if numbers < SMALLEST_IN_8_BITS:
        return 2 * FULL_BYTES * numbers
    return 2 * (numbers + FULL_BYTES * -(-numbers // SCALED_BLOCK))


def _adafactor(weight: Tensor, _is_hidden: bool) -> int:
    """Shazeer and Stern, Adafactor (2018), section 3: of a matrix the sums of rows and columns."""
    size = FULL_BYTES  # of its mean square
    if weight.dim() < 2:
        return size + FULL_BYTES * weight.numel()
    rows, columns = weight.shape[-2:]
    return size + FULL_BYTES * (weight.numel() // columns + weight.numel() // rows)


def _muon(weight: Tensor, is_hidden: bool) -> int:
    return FULL_BYTES * weight.numel() + FULL_BYTES if is_hidden else _adamw(weight, False)


HELD_BY_OPTIMIZER = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "muon": _muon,
}
"""Name of an optimizer -> bytes that it holds of a float32 weight."""


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


def count_holdings(made: Assigned, double: bool = True) -> Holdings:
    """Add up the fates of all weights.

    Args:
        made: of them.
        double: whether the scales of what is in 4 bits are held in 8.
    """
    model, family = made.model, made.family
    parameters, hidden = dict(model.named_parameters()), hidden_matrices(model)
    elements = {one.name: one.elements for one in made.assignments}
    learnt = [one for one in made.assignments if one.learn]
    adapters = sum(one.elements for one in made.assignments if one.rank is not None)
    four_bit = sum(count for name, count in elements.items() if made.is_packed(name))
    modules = model.named_modules()
    # A head that is the embedding too stands among the parameters once, under that name.
    linear = {f"{name}.weight" for name, one in modules if isinstance(one, nn.Linear)}
    whole = [one for one in made.assignments if one.name in linear and not made.is_packed(one.name)]
    frozen = [one for one in whole if not one.learn and not family.is_unused(model, one.name)]
    fixed = {id(one) for one in frozen_matrices(model)}
    groups: dict[tuple[float, float, bool], int] = {}
    for one in learnt:
        key = one.learning_rate, one.weight_decay, parameters[one.name] in hidden
        groups[key] = groups.get(key, 0) + one.elements

    def held(one: Assignment) -> HeldTensor:
        rows, numbers = parameters[one.name].shape[0], one.elements
        if one.rank is not None:
            return HeldTensor(rows, numbers, "adapter", one.learn)
        if made.is_packed(one.name):
            return HeldTensor(rows, numbers, "four_bit", one.learn)
        is_held_small = id(parameters[one.name]) in fixed
        return HeldTensor(rows, numbers, "linear" if is_held_small else "whole", one.learn)

    def together(weights: Collection[Assignment]) -> Together:
        packed = sum(one.elements for one in weights if made.is_packed(one.name))
        learnt = sum(one.elements for one in weights if one.learn)
        return Together(sum(one.elements for one in weights) - packed, packed, learnt)

    fates = {id(parameters[one.name]): one for one in made.assignments}
    blocks = [
        together([fates.pop(id(w)) for w in block.parameters() if id(w) in fates])
        for block in family.blocks(model)
    ]
    return Holdings(
        whole=sum(elements.values()) - adapters - four_bit,
        four_bit=four_bit,
        learnt=sum(one.elements for one in learnt),
        learnt_tensors=len(learnt),
        learnt_groups=tuple(groups.values()),
        optimizer_bytes={
            name: sum(state(parameters[one.name], parameters[one.name] in hidden) for one in learnt)
            for name, state in HELD_BY_OPTIMIZER.items()
        },
        adapters=adapters,
        learnt_linear=sum(one.elements for one in whole if one.learn),
        frozen_linear=sum(one.elements for one in frozen),
        largest_block=max(blocks, key=Together.weights_bytes, default=Together()),
        outside_blocks=together(fates.values()),
        tensors=tuple(map(held, made.assignments)),
        double=double,
    )
