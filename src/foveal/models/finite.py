"""A model and some work -> the first layer whose numbers are not finite, in words."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.machine import DTYPES
from foveal.models.family import LoadedModel

BROKEN_WEIGHTS = "its weights are not"

FORMATS = {dtype: name for name, dtype in DTYPES.items()}


def explain_not_finite(loaded: LoadedModel, work: Callable[[], object]) -> str:
    """Do some work once more, and say where its numbers stop being finite.

    Args:
        loaded: model that the work runs.
        work: passes of it, in the number format in which they failed.
    """
    found = find_not_finite(loaded, work)
    if found:
        return found
    precision = precision_of(loaded.model)
    return (
        f"what comes behind its last layer gives numbers that are not finite in {precision}: "
        f"{_advice(loaded.model, precision)}"
    )


def find_not_finite(loaded: LoadedModel, work: Callable[[], object]) -> str:
    """Do some work once more, and name its first layer whose numbers are not finite; empty: none.

    Args:
        loaded: model that the work runs.
        work: passes of it, in the number format in which they failed.
    """
    found: list[str] = []
    hooks = [
        module.register_forward_hook(partial(_look, found, name))
        for name, module in loaded.model.named_modules()
        if name
    ]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return ""
    layer, module = loaded.family.part_name(found[0]), loaded.model.get_submodule(found[0])
    precision = precision_of(loaded.model)
    return f"{layer} gives numbers that are not finite in {precision}: {_advice(module, precision)}"


def precision_of(model: Any) -> str:
    """Name the number format that a model's passes are computed in here."""
    kind = model.device.type
    mixed = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else model.dtype
    return FORMATS.get(dtype, str(dtype))


def _look(found: list[str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """Note a module whose output is not finite; those within others are done before them."""
    if not found and not all(bool(one.isfinite().all()) for one in _tensors(output)):
        found.append(name)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, Iterable) and not isinstance(output, str):
        for one in output:
            yield from _tensors(one)


def _advice(module: nn.Module, precision: str) -> str:
    own = (one for one in module.parameters() if one.is_floating_point())
    # Of a weight that is cut, this process's share: the others may not ask.
    shares: Any = (one.to_local() if hasattr(one, "to_local") else one for one in own)
    if not all(bool(one.isfinite().all()) for one in shares):
        return f"{BROKEN_WEIGHTS}; take another checkpoint"
    if precision == "fp16":
        return "they grow beyond its range; use precision=bf16 or float32"
    return "its weights or what it is given are too large; take another checkpoint"
