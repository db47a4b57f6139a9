"""A model without weights + the real rules -> what is held, and how much of it learns."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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


HeldAs = Literal["whole", "linear", "four_bit", "adapter"]
"""linear: a frozen weight of a linear layer, which is held as passes compute."""


@dataclass(frozen=True)
class HeldTensor:
    """A weight, or a matrix of an adapter, before an engine cuts it."""

    rows: int
    """Along which FSDP2 cuts."""

    numbers: int
    kind: HeldAs

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
class HeldTensors:
    """All weights and adapters of a model, or of a part that FSDP2 brings together at a time."""

    tensors: Sequence[HeldTensor]

    def share(self, *kinds: HeldAs, parts: int = 1) -> int:
        """Count the numbers of some kinds, each tensor cut over so many processes."""
        return sum(one.share(parts) for one in self.tensors if one.kind in kinds)

    def learnt_share(self, parts: int = 1) -> int:
        """Count the numbers that learn, each tensor cut over so many processes."""
        return sum(one.share(parts) for one in self.tensors if one.learns)

    @cached_property
    def four_bit(self) -> int:
        """Numbers in 4 bits."""
        return self.share("four_bit")

    @cached_property
    def adapters(self) -> int:
        """Numbers of adapters."""
        return self.share("adapter")

    @cached_property
    def whole(self) -> int:
        """Numbers of weights in the run's own width, adapters not counted."""
        return self.share("whole", "linear")

    @cached_property
    def learnt(self) -> int:
        """Numbers with a gradient and an optimizer's state: of weights, or of adapters."""
        return self.learnt_share()

    @property
    def numbers(self) -> int:
        """All that is not in 4 bits."""
        return self.whole + self.adapters

    def gathered_bytes(self, number_bytes: int = FULL_BYTES) -> int:
        """Bytes of all, brought together; two numbers in 4 bits share one."""
        return self.numbers * number_bytes + (self.four_bit + 1) // 2


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
class Holdings(HeldTensors):
    """What a process has to hold, by what is done with it."""

    learnt_groups: Sequence[int]
    """Numbers of each of the optimizer's groups: of one rate, one decay and one kind."""

    optimizer_bytes: Mapping[str, int]
    """What an optimizer holds to let them learn, by its name."""

    learnt_linear: int
    """Of linear layers, that autocast copies to 16 bits once a pass."""

    frozen_linear: int
    """Of linear layers that a pass reads, that autocast copies to 16 bits at each use."""

    largest_block: HeldTensors
    """The repeated layer that weighs most, adapters included."""

    outside_blocks: HeldTensors
    """What stands in no repeated layer: embedding, head, projector."""

    double: bool
    """Whether the scales of what is in 4 bits are held in 8."""

    def weights_bytes(self, frozen_bytes: int, parts: int = 1) -> int:
        """Bytes of all but adapters.

        Args:
            frozen_bytes: of a number of a linear layer that does not learn.
            parts: processes that each tensor is cut over.
        """
        packed = (one for one in self.tensors if one.kind == "four_bit")
        total = sum(one.packed_bytes(parts, self.double) for one in packed)
        total += self.share("linear", parts=parts) * frozen_bytes
        return total + self.share("whole", parts=parts) * FULL_BYTES


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
    learnt = [one for one in made.assignments if one.learn]
    modules = model.named_modules()
    # A head that is the embedding too stands among the parameters once, under that name.
    linear = {f"{name}.weight" for name, one in modules if isinstance(one, nn.Linear)}
    whole = [one for one in made.assignments if one.name in linear and not made.is_packed(one.name)]
    frozen = [one for one in whole if not one.learn and not family.is_unused(model, one.name)]
    matrices = {id(one) for one in frozen_matrices(model)}
    groups: dict[tuple[float, float, bool], int] = {}
    for one in learnt:
        key = one.learning_rate, one.weight_decay, parameters[one.name] in hidden
        groups[key] = groups.get(key, 0) + one.elements

    def kind_of(one: Assignment) -> HeldAs:
        if one.rank is not None:
            return "adapter"
        if made.is_packed(one.name):
            return "four_bit"
        return "linear" if id(parameters[one.name]) in matrices else "whole"

    def held(one: Assignment) -> HeldTensor:
        return HeldTensor(parameters[one.name].shape[0], one.elements, kind_of(one), one.learn)

    tensors = {id(parameters[one.name]): held(one) for one in made.assignments}
    everything = tuple(tensors.values())
    blocks = [
        HeldTensors([tensors.pop(id(w)) for w in block.parameters() if id(w) in tensors])
        for block in family.blocks(model)
    ]
    return Holdings(
        everything,
        learnt_groups=tuple(groups.values()),
        optimizer_bytes={
            name: sum(state(parameters[one.name], parameters[one.name] in hidden) for one in learnt)
            for name, state in HELD_BY_OPTIMIZER.items()
        },
        learnt_linear=sum(one.elements for one in whole if one.learn),
        frozen_linear=sum(one.elements for one in frozen),
        largest_block=max(blocks, key=HeldTensors.gathered_bytes, default=HeldTensors(())),
        outside_blocks=HeldTensors(tuple(tensors.values())),
        double=double,
    )
