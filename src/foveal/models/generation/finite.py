"""What a pass made -> which of it is no number, and the layer where that began."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import ModelError
from foveal.models.family import LoadedModel
from foveal.models.generation.passes import Growing, logits_behind, run_pass
from foveal.models.generation.prompt import Stretch
from foveal.models.generation.tree import Tree

FORMATS = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class NotFiniteError(ModelError):
    """A model's numbers are not finite: nothing can be said of the answer."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message)
        self.place = place
        """Which of the questions asked for together it was."""


def are_finite(pieces: Sequence[Tensor]) -> list[bool]:
    """Tell of each (tokens, width) whether all of it is finite; waits for the device once."""
    rows = iter(torch.cat(list(pieces)).isfinite().all(-1).tolist())
    return [all([next(rows) for _ in range(len(piece))]) for piece in pieces]


def not_finite(
    loaded: LoadedModel, stretches: Sequence[Stretch], is_long: bool, place: int = 0
) -> NotFiniteError:
    """Say where a prompt's numbers stop being finite, by running it alone once more.

    Args:
        loaded: model, in evaluation mode, and processor.
        stretches: of the prompt, end to end.
        is_long: whether it is rotated as a long example.
        place: of the question among those asked together.
    """
    ids = tuple(one for stretch in stretches for one in stretch.ids)
    images = tuple(image for stretch in stretches for image in stretch.images)
    tree = Tree(None, is_long)
    part = Growing(tree, tree.add_node(None), Stretch(ids, images))
    found: list[str] = []
    hooks = [
        module.register_forward_hook(partial(_look, found, name))
        for name, module in loaded.model.named_modules()
        if name
    ]
    try:
        logits_behind(loaded, run_pass(loaded, [part])[0][-1:])
    finally:
        for hook in hooks:
            hook.remove()
    precision = precision_of(loaded.model)
    layer = loaded.family.part_name(found[0]) if found else "its last layer"
    return NotFiniteError(
        f"{layer} gives numbers that are not finite in {precision}: {_advice(loaded, found)}", place
    )


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


def _advice(loaded: LoadedModel, found: Sequence[str]) -> str:
    module = loaded.model.get_submodule(found[0]) if found else loaded.model
    weights = module.parameters(recurse=not found)
    if not all(bool(one.isfinite().all()) for one in weights if one.is_floating_point()):
        return "its weights are not; take another checkpoint"
    if precision_of(loaded.model) == "fp16":
        return "they grow beyond its range; use precision=bf16 or float32"
    return "its weights or what it is given are too large; take another checkpoint"
