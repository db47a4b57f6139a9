"""A weight + its low-rank adapter -> the one that does what both did; what 4 bits leave of it."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from foveal.adapt.quantize import layer_kind
from foveal.errors import ModelError
from foveal.models.few_bits import CODE, unpack

Value = TypeVar("Value")

ADAPTER_NAME = re.compile(
    r"^(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<part>A|B|magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?$"
)
"""As a checkpoint of ours names an adapter's tensors, and as peft's own files do."""

PARTS = {"A": "down", "B": "up", "magnitude_vector": "magnitude"}


@dataclass(frozen=True)
class Adapter:
    """The learnt tensors beside one linear layer."""

    down: Tensor
    """(rank, inputs)"""

    up: Tensor
    """(outputs, rank)"""

    magnitude: Tensor | None = None
    """(outputs,), of DoRA."""

    def merged_with(self, weight: Tensor, alpha: float, rank_stabilized: bool = False) -> Tensor:
        """Fold the adapter into its layer's weight.

        Args:
            weight: (outputs, inputs), of any number format.
            alpha: of the run; over the rank it is what the product is multiplied by.
            rank_stabilized: divide by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).

        Returns:
            (outputs, inputs), float32.
        """
        rank = self.down.shape[0]
        scale = float(alpha / (rank**0.5 if rank_stabilized else rank))
        update = self.up.float() @ self.down.float() * scale
        merged = weight.float() + update
        if self.magnitude is None:
            return merged
        # Liu et al. 2024, arXiv:2402.09353, equation 5: a length of its own for each output.
        lengths = torch.linalg.norm(merged, dim=1)
        stretched: Tensor = merged * (self.magnitude.float().flatten() / lengths)[:, None]
        return stretched


def sort_adapters(tensors: Mapping[str, Value]) -> tuple[dict[str, dict[str, Value]], list[str]]:
    """Tell adapters' tensors from whole weights, by name alone.

    Returns:
        Layer -> part (`down`, `up`, `magnitude`) -> value; and the names of all other tensors.

    Raises:
        ModelError: half of an adapter is missing.
    """
    adapters: dict[str, dict[str, Value]] = defaultdict(dict)
    others = []
    for name, value in tensors.items():
        match = ADAPTER_NAME.match(name)
        if match:
            adapters[match["layer"]][PARTS[match["part"]]] = value
        else:
            others.append(name)
    for layer, parts in adapters.items():
        if not {"down", "up"} <= parts.keys():
            raise ModelError(f"the adapter of {layer} holds {', '.join(parts)} alone")
    return dict(adapters), others


def relative_norms(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, float]:
    """Measure how far weights are from others, per kind of layer.

    Args:
        pairs: (layer, weight, what stands for it).

    Returns:
        Kind -> norm of all differences over the norm of all weights.
    """
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for layer, weight, other in pairs:
        sums = squares[layer_kind(layer)]
        sums[0] += float((other.float() - weight.float()).square().sum())
        sums[1] += float(weight.float().square().sum())
    return {kind: (apart / whole) ** 0.5 for kind, (apart, whole) in squares.items() if whole}


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
