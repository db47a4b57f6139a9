"""New tokens of many trees -> one forward pass over them all, and the hidden states it gives."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicCache

from foveal.data.forward_inputs import ForwardInputs, GroupSpan
from foveal.errors import ModelError
from foveal.models.cached_rows import Strand, StrandBatch, line_up, read
from foveal.models.family import LoadedModel
from foveal.models.finite import explain_not_finite
from foveal.models.forward import hand_out, hidden_states
from foveal.models.generation.prompt import PromptImage, Stretch
from foveal.models.generation.tree import NewTokens, Node, Tree, grow


class NotFiniteError(ModelError):
    """A model's numbers are not finite: nothing can be said of the answer."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message)
        self.place = place
        """Which of the questions asked for together it was."""


@dataclass(frozen=True)
class Growing:
    """Tokens that a node gets in this pass."""

    tree: Tree
    node: Node
    stretch: Stretch


def plant(tree: Tree | None, key: Hashable, is_long: bool, *prompt: Stretch) -> list[Growing]:
    """Find a prompt its place: all that is to be read of it, its own part last.

    Args:
        tree: that holds its prefix already; none: there is none yet.
        key: of a new one.
        is_long: whether a new one is rotated as long examples are.
        prompt: its prefix, empty where it shares none, and what stands behind it.
    """
    prefix, behind = prompt
    parts = []
    if tree is None:
        tree = Tree(key, is_long)
        if len(prefix.ids):
            parts.append(Growing(tree, tree.add_node(None), prefix))
    root = tree.nodes[0] if len(prefix.ids) else None
    return [*parts, Growing(tree, tree.add_node(root), behind)]


@torch.no_grad()
def run_pass(loaded: LoadedModel, parts: Sequence[Growing]) -> list[Tensor]:
    """Read new tokens, and keep what later ones need in their trees.

    Args:
        loaded: model and processor.
        parts: in any order, but a node behind the one it grows from.

    Returns:
        (tokens, hidden) of each part.
    """
    if loaded.family.route == "cache":
        return _run_on_strands(loaded, parts)
    if loaded.family.route == "plain":
        return [_read_anew(loaded, part) for part in parts]
    model, device = loaded.model, loaded.model.device
    sight = loaded.family.image_sight(model)
    trees = {tree: place for place, tree in enumerate(dict.fromkeys(one.tree for one in parts))}
    order = sorted(range(len(parts)), key=lambda at: trees[parts[at].tree])
    sorted_parts = [parts[at] for at in order]
    growths = []
    for tree, some in groupby(sorted_parts, key=lambda part: part.tree):
        growths.append(grow(tree, [_new_tokens(loaded, part) for part in some], device, sight))
    positions = np.concatenate([_positions(loaded, part) for part in sorted_parts], axis=1)
    ids = np.concatenate([part.stretch.ids for part in sorted_parts])
    hidden = hidden_states(
        model,
        loaded.family,
        ForwardInputs(
            input_ids=torch.from_numpy(ids)[None].to(device),
            positions=torch.from_numpy(positions)[:, None].to(device),
            **_images([image for part in sorted_parts for image in part.stretch.images], loaded),
        ),
        trees=tuple(growths),
    )
    lengths = [len(one.stretch.ids) for one in sorted_parts]
    chunks = dict(zip(order, hidden.split(lengths), strict=True))
    return [chunks[at] for at in range(len(parts))]


def _read_anew(loaded: LoadedModel, part: Growing) -> Tensor:
    """Read all up to a part's end in the model's own way, which keeps nothing; (tokens, hidden)."""
    node, model = part.node, loaded.model
    before: Stretch | None = node.read or (node.parent.read if node.parent else None)
    whole = before.joined(part.stretch) if before else part.stretch
    hidden = hidden_states(
        model,
        loaded.family,
        ForwardInputs(
            input_ids=torch.from_numpy(whole.ids)[None].to(model.device),
            positions=torch.from_numpy(whole.positions)[:, None].to(model.device),
            **_images(whole.images, loaded),
        ),
        groups=(GroupSpan(0, (), len(whole.ids)),),
        answer_starts=(whole.answer_start,),
    )
    grow(part.tree, [NewTokens(node, len(part.stretch.ids))], model.device, "causal")  # its books
    node.read = whole
    return hidden[-len(part.stretch.ids) :]


def _run_on_strands(loaded: LoadedModel, parts: Sequence[Growing]) -> list[Tensor]:
    """Read parts side by side that are as long and stand behind about as much."""
    hidden: dict[int, Tensor] = {}
    waiting = list(range(len(parts)))
    while waiting:
        alike: dict[Hashable, list[int]] = {}
        for at in waiting:
            strand, node = _behind(parts[at]), parts[at].node
            if strand is not None:
                # Lengths up to twice each other: no more than half of a batch stands empty.
                size = len(parts[at].stretch.ids), strand.length.bit_length()
                alike.setdefault((*size, node.strand is None), []).append(at)
            elif node.parent is None:
                alike[at] = [at]
        for some in alike.values():
            hidden |= zip(some, _read_alike(loaded, [parts[at] for at in some]), strict=True)
        waiting = [at for at in waiting if at not in hidden]
    return [hidden[at] for at in range(len(parts))]


def _behind(part: Growing) -> Strand | None:
    """Find what a part goes on from: its own node, or the one above it."""
    node = part.node
    return node.strand or (node.parent.strand if node.parent else None)


def _read_alike(loaded: LoadedModel, parts: Sequence[Growing]) -> Tensor:
    """Read parts of one length; (parts, tokens, hidden)."""
    model, family, device = loaded.model, loaded.family, loaded.model.device
    strands = [strand for part in parts if (strand := _behind(part))]
    if strands:
        batch = line_up(strands, goes_on=all(part.node.strand for part in parts))
    else:
        batch = StrandBatch(DynamicCache(config=model.config), [0])
    tokens = len(parts[0].stretch.ids)
    mask = batch.mask(tokens)
    shown = _images([image for part in parts for image in part.stretch.images], loaded)
    images = None
    if shown["pixels"]:
        made = family.encode_images(model, shown["pixels"])
        images = hand_out(made, shown["image_features"], shown["image_indices"])
    hidden = read(
        model,
        torch.from_numpy(np.stack([part.stretch.ids for part in parts])).to(device),
        torch.from_numpy(np.stack([part.stretch.positions for part in parts], 1)).to(device),
        images,
        batch.cache,
        None if mask is None else mask.to(device),
    )
    batch.lengths = [length + tokens for length in batch.lengths]
    for part, strand in zip(parts, batch.strands(), strict=True):
        grow(part.tree, [NewTokens(part.node, tokens)], device, "causal")  # the trees' own books
        part.node.strand = strand
    return hidden


def _positions(loaded: LoadedModel, part: Growing) -> NDArray[np.int64]:
    """Place tokens, and mark them where a model treats long examples apart; (axes, tokens)."""
    positions = part.stretch.positions
    if loaded.processor.long_context_tokens is None:
        return positions
    return np.concatenate([positions, np.full((1, positions.shape[1]), int(part.tree.is_long))])


def _new_tokens(loaded: LoadedModel, part: Growing) -> NewTokens:
    """Say which of them take features of which image; images of a tree are told apart by number."""
    ids = part.stretch.ids
    if not part.stretch.images:
        return NewTokens(part.node, len(ids))
    first = int(part.tree.images.max(initial=-1)) + 1
    numbers = np.arange(first, first + len(part.stretch.images))
    images = np.full(len(ids), -1)
    features = [image.shape.features for image in part.stretch.images]
    images[ids == loaded.processor.image_token_id] = np.repeat(numbers, features)
    return NewTokens(part.node, len(ids), images)


def _images(shown: Sequence[PromptImage], loaded: LoadedModel) -> dict[str, Any]:
    """Open the images, each distinct one once."""
    numbers: dict[Hashable, int] = {}
    indices = tuple(numbers.setdefault(image.key, len(numbers)) for image in shown)
    by_key = {image.key: image for image in reversed(shown)}
    distinct = [by_key[key] for key in numbers]
    shapes = [image.shape for image in distinct]
    pixels: dict[str, Tensor] = {}
    if distinct:
        pixels = loaded.processor.stack([image.pixels() for image in distinct], shapes)
    return {
        "pixels": {name: one.to(loaded.model.device) for name, one in pixels.items()},
        "image_features": tuple(shape.features for shape in shapes),
        "image_indices": indices,
    }


def logits_behind(loaded: LoadedModel, hidden: Tensor) -> Tensor:
    """Predict the next token behind some hidden states: (tokens, vocab), float32."""
    with torch.no_grad():
        logits: Tensor = loaded.family.head(loaded.model)(hidden)
        return logits.float()


def broken_nodes(parts: Sequence[Growing], hidden: Sequence[Tensor]) -> set[Node]:
    """Find nodes of which not all that a pass gave is finite; waits for the device once.

    Args:
        parts: of the pass.
        hidden: (tokens, hidden) of each.
    """
    rows = torch.cat(list(hidden)).isfinite().all(-1).cpu().split([len(chunk) for chunk in hidden])
    return {part.node for part, finite in zip(parts, rows, strict=True) if not finite.all()}


def not_finite(
    loaded: LoadedModel, whole: Stretch, is_long: bool, place: int = 0
) -> NotFiniteError:
    """Say where a prompt's numbers stop being finite, by running it alone once more.

    Args:
        loaded: model, in evaluation mode, and processor.
        whole: the prompt, and what is written behind it.
        is_long: whether it is rotated as a long example.
        place: of the question among those asked together.
    """
    tree = Tree(None, is_long)
    part = Growing(tree, tree.add_node(None), whole)
    reason = explain_not_finite(
        loaded, lambda: logits_behind(loaded, run_pass(loaded, [part])[0][-1:])
    )
    return NotFiniteError(reason, place)
