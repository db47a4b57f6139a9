"""A model's decoder in int8, fp8 or int4, weights alone, in the layout of compressed-tensors."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveal.adapt.quantize import name_kinds, skeleton
from foveal.errors import ModelError, UserError
from foveal.models.family import Family

WeightFormat = Literal["int8", "fp8", "int4"]

GROUP_SIZES = (128, 64, 32)
"""Inputs that share a scale in int4, the first that fits every layer: those of vLLM's kernels."""

PACKED_INPUTS = 32
"""Inputs that fill whole words of 32 bits in any of the integer formats."""

FAST_SHAPE = (64, 128)
"""Outputs and inputs are multiples of these in vLLM's fast kernels (Marlin); others are slower."""

LARGEST_FP8 = 448.0
"""Of e4m3, the 8-bit float with 4 bits of exponent and no infinity."""


@dataclass(frozen=True)
class WeightOnly:
    """Which layers of a model are held in fewer bits, and how."""

    kind: WeightFormat
    layers: Mapping[str, tuple[int, int]]
    """Own name of a linear layer -> (outputs, inputs)."""

    whole: tuple[str, ...]
    """Names, or patterns behind `re:`, of the linear layers that stay as they are."""

    group_size: int | None
    """Inputs that share a scale; none: all of an output."""

    @property
    def bits(self) -> int:
        """Of a weight."""
        return 4 if self.kind == "int4" else 8

    @cached_property
    def _scheme(self) -> Any:
        quantization = import_compressed_tensors()
        weights = quantization.QuantizationArgs(
            num_bits=self.bits,
            type="float" if self.kind == "fp8" else "int",
            symmetric=True,
            strategy="group" if self.group_size else "channel",
            group_size=self.group_size,
        )
        return quantization.QuantizationScheme(
            targets=["Linear"], weights=weights, format=self._layout
        )

    @property
    def _layout(self) -> str:
        return "float-quantized" if self.kind == "fp8" else "pack-quantized"

    def settings(self) -> dict[str, Any]:
        """Say it as config.json does, under `quantization_config`."""
        config = import_compressed_tensors().QuantizationConfig(
            config_groups={"group_0": self._scheme},
            format=self._layout,
            ignore=list(self.whole),
            quantization_status="compressed",
        )
        said: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
        return said

    def holds(self, name: str) -> bool:
        """Tell whether it holds a weight, by the model's own name for it."""
        return name.endswith(".weight") and name.removesuffix(".weight") in self.layers

    def compress(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Hold a layer's weight in fewer bits.

        Args:
            weight: (outputs, inputs), float32; without content, what is returned has none either.
            dtype: of the scales.

        Returns:
            Last part of a tensor's name -> tensor.
        """
        groups = self._grouped(weight)
        helpers = import_module("compressed_tensors.quantization.utils")
        # Size of a step, (outputs, groups): the largest weight of a group fits exactly.
        scale, _ = helpers.calculate_qparams(groups.amin(-1), groups.amax(-1), self._scheme.weights)
        compressors = import_module("compressed_tensors.compressors")
        compressor = compressors.BaseCompressor.get_value_from_registry(self._layout)
        held: dict[str, Tensor] = compressor.compress(
            {"weight": weight, "weight_scale": scale.to(dtype)}, self._scheme
        )
        return held

    def rounded(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Round a weight as its file does, by arithmetic of our own.

        Args:
            weight: (outputs, inputs).
            dtype: of the scales.

        Returns:
            (outputs, inputs), in `dtype`.
        """
        groups = self._grouped(weight.float())
        largest = groups.abs().amax(-1, keepdim=True)
        steps = LARGEST_FP8 if self.kind == "fp8" else (2**self.bits - 1) / 2
        scale = (largest / steps).to(dtype)
        scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
        places = groups / scale
        if self.kind == "fp8":
            places = places.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)
        else:
            places = places.round().clamp(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        return (places.to(dtype) * scale).reshape(weight.shape)

    def _grouped(self, weight: Tensor) -> Tensor:
        groups: Tensor = weight.unflatten(-1, (-1, self.group_size or weight.shape[-1]))
        return groups

    def line(self) -> str:
        """Tell what is held, and how."""
        shared = f"a scale for {self.group_size} inputs" if self.group_size else "a scale an output"
        return f"{self.kind}, {shared}: {name_kinds(self.layers)}"

    def slow_line(self) -> str | None:
        """Name the layers whose shapes vLLM's fast kernels do not take; none: there is none."""
        outputs, inputs = FAST_SHAPE
        slow = [name for name, (a, b) in self.layers.items() if a % outputs or b % inputs]
        if self.kind == "fp8" or not slow:
            return None
        return (
            f"vLLM has fast kernels for outputs in multiples of {outputs} and inputs of {inputs}; "
            f"not so are {name_kinds(slow)}"
        )


def plan_weight_only(base: str, family: Family, kind: WeightFormat) -> WeightOnly:
    """Choose the layers that are held in fewer bits: the decoder's linear ones but the head.

    Tower and projector are small beside them, and what they lose is lost for every token.

    Args:
        base: folder of a model of the same shapes.
        family: what kind of model it is.
        kind: number format of the weights.

    Raises:
        UserError: the package compressed-tensors is missing.
        ModelError: the model cannot be held so.
    """
    import_compressed_tensors()
    model = skeleton(base)
    head = family.head(model)
    linear = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    layers = {
        name: (one.out_features, one.in_features)
        for name, one in linear.items()
        if type(one) is nn.Linear and one is not head and _in_decoder(family, name)
    }
    if stacked := next(_stacked_experts(model, family), None):
        raise ModelError(
            f"--quantize {kind}: {stacked} holds all experts in one tensor, for which there is no "
            "layout here; export it whole and quantize it with llm-compressor"
        )
    if not layers:
        raise ModelError(f"--quantize {kind}: its decoder has no linear layer to hold so")
    group_size = None
    if kind == "int4":
        inputs = {one for _, one in layers.values()}
        fitting = (size for size in GROUP_SIZES if not any(one % size for one in inputs))
        group_size = next(fitting, GROUP_SIZES[-1])
    odd = [name for name, (_, one) in layers.items() if one % PACKED_INPUTS]
    if kind != "fp8" and odd:
        raise ModelError(
            f"--quantize {kind}: {name_kinds(odd)} have no multiple of {PACKED_INPUTS} inputs, "
            "which the layout packs together; give --quantize fp8"
        )
    kept = [name for name in linear if name not in layers]
    return WeightOnly(kind, layers, _patterns(kept, layers), group_size)


def _in_decoder(family: Family, layer: str) -> bool:
    return family.part_name(f"{layer}.weight").startswith("language.")


def _stacked_experts(model: nn.Module, family: Family) -> Iterator[str]:
    for layer, module in model.named_modules():
        for name, weight in module.named_parameters(layer, recurse=False):
            convolves = isinstance(module, nn.modules.conv._ConvNd)
            if weight.ndim > 2 and not convolves and family.part_name(name)[:9] == "language.":
                yield name


def _patterns(kept: list[str], held: Mapping[str, object]) -> tuple[str, ...]:
    """Name what stays whole by a word of its path that no held layer has.

    Engines put other words before it, and fuse layers below it under other names.
    """
    words = {word for name in held for word in name.split(".")}
    found: dict[str, None] = {}
    for name in kept:
        own = [word for word in name.split(".") if word not in words and not word.isdigit()]
        found[rf"re:(.*\.)?{re.escape(own[0])}(\..*)?$" if own else name] = None
    return tuple(found)


def import_compressed_tensors() -> Any:
    """Import what writes and reads the layout.

    Raises:
        UserError: it is missing.
    """
    try:
        return import_module("compressed_tensors.quantization")
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'foveal[quantize]'") from error
