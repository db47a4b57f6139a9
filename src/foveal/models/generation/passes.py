"""New tokens of many trees -> one forward pass over them all, and the hidden states it gives."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.models.family import LoadedModel
from foveal.models.generation.prompt import PromptImage, Stretch
from foveal.models.generation.tree import Node, Tree, attending_in_trees, grow


@dataclass(frozen=True)
class Growing:
    """Tokens that a node gets in this pass."""

    tree: Tree
    node: Node
    stretch: Stretch


@torch.no_grad()
def run_pass(loaded: LoadedModel, parts: Sequence[Growing]) -> list[Tensor]:
    """Read new tokens, and keep their keys and values in their trees.

    Args:
        loaded: model and processor.
        parts: in any order, but a node behind the one it grows from.

    Returns:
        (tokens, hidden) of each part.
    """
    model, device = loaded.model, loaded.model.device
    border = loaded.family.long_context_tokens(model) or 0
    trees = {tree: place for place, tree in enumerate(dict.fromkeys(one.tree for one in parts))}
    order = sorted(range(len(parts)), key=lambda at: trees[parts[at].tree])
    sorted_parts = [parts[at] for at in order]
    growths, positions = [], []
    for tree, some in groupby(sorted_parts, key=lambda part: part.tree):
        sizes = [(part.node, len(part.stretch.ids)) for part in some]
        growths.append(grow(tree, sizes, device))
        positions += [np.arange(node.end - count, node.end) for node, count in sizes]
    tokens = [len(part.stretch.ids) for part in sorted_parts]
    lengths = [border + 1 if part.tree.is_long else 1 for part in sorted_parts]
    ids = [one for part in sorted_parts for one in part.stretch.ids]
    inputs = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.from_numpy(np.concatenate(positions))[None].to(device),
        "example_lengths": torch.from_numpy(np.repeat(lengths, tokens))[None].to(device),
        "trees": growths,
    }
    shown = [image for part in sorted_parts for image in part.stretch.images]
    with attending_in_trees(model.config):
        hidden = loaded.family.row_hidden_states(model, inputs | _pictures(shown, device))
    pieces = dict(zip(order, hidden.split(tokens), strict=True))
    return [pieces[at] for at in range(len(parts))]


def _pictures(shown: Sequence[PromptImage], device: torch.device) -> dict[str, Any]:
    """Cut the pictures, each distinct one once."""
    if not shown:
        return {}
    numbers: dict[Hashable, int] = {}
    indices = tuple(numbers.setdefault(image.key, len(numbers)) for image in shown)
    distinct = {image.key: image for image in reversed(shown)}
    crops = [distinct[key].cut() for key in numbers]
    side = crops[0].shape[-1]
    grids = [distinct[key].grid for key in numbers]
    return {
        "pixel_values": torch.cat(crops).to(device),
        "image_sizes": torch.tensor([(rows * side, columns * side) for rows, columns in grids]),
        "image_indices": indices,
    }


def logits_behind(loaded: LoadedModel, hidden: Tensor) -> Tensor:
    """Predict the next token behind some hidden states: (tokens, vocab), float32."""
    with torch.no_grad():
        logits: Tensor = loaded.family.head(loaded.model)(hidden)
        return logits.float()
