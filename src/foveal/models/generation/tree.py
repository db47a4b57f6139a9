"""Tree: keys and values of one prefix and all that branches from it, in one row of slots.

A node is a stretch of tokens; it sees the nodes above it and what stands before it in itself. A
prefix is so kept once, however many answers grow behind it.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveal.models.cached_rows import Strand
from foveal.models.row_view import ImageSight, are_near, is_mutual

WORTH_CLOSING_UP = 0.5
"""Share of dead slots at which a tree is closed up."""

MOST_DEAD_NODES = 64
"""Dead nodes above which it is closed up, however little they hold."""

LEAST_ROOM = 64
"""Slots that a tree gets beyond what it needs."""


class Node:
    """A stretch of tokens behind another."""

    def __init__(self, number: int, parent: "Node | None") -> None:
        self.number = number
        self.parent = parent
        self.tokens = 0
        self.is_alive = True
        self.strand: Strand | None = None
        """What was read up to its end, where a tree cannot hold it."""
        self.read: Any = None
        """All up to its end, where it is read anew each time."""

    @property
    def end(self) -> int:
        """Tokens from the root's first to its own last."""
        return sum(node.tokens for node in self.line())

    def line(self) -> Iterator["Node"]:
        """Go from the node up to the root."""
        node: Node | None = self
        while node:
            yield node
            node = node.parent


class Tree:
    """Nodes, and the slots that hold their keys and values in every layer."""

    def __init__(self, key: Hashable = None, is_long: bool = False) -> None:
        self.key = key
        """What others find it by; none: nobody does."""

        self.is_long = is_long
        """Whether its tokens are rotated with the factors of long examples."""

        self.nodes: list[Node] = []
        self.owners = np.zeros(0, np.int64)
        """(slots,) Number of the node that each slot belongs to."""

        self.places = np.zeros(0, np.int64)
        """(slots,) Place of each token in its own sequence."""

        self.images = np.zeros(0, np.int64)
        """(slots,) Number of the image whose feature a token takes, -1 for words."""

        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def has_branches(self) -> bool:
        """Whether anything but the root is alive."""
        return any(node.is_alive and node.parent for node in self.nodes)

    @property
    def slots(self) -> int:
        """Slots in use, dead ones too."""
        return len(self.owners)

    def add_node(self, parent: Node | None) -> Node:
        """Begin a stretch behind another; the first one is the root."""
        node = Node(len(self.nodes), parent)
        self.nodes.append(node)
        return node

    def remove(self, node: Node) -> None:
        """Give up a node without children; its slots are dead from now on."""
        node.is_alive = False
        alive = self._alive_slots()
        num_dead = sum(not one.is_alive for one in self.nodes)
        if alive.sum() <= WORTH_CLOSING_UP * self.slots or num_dead > MOST_DEAD_NODES:
            self._close_up(alive)

    def _alive_slots(self) -> NDArray[np.bool_]:
        alive: NDArray[np.bool_] = np.array([node.is_alive for node in self.nodes])[self.owners]
        return alive

    def _close_up(self, alive: NDArray[np.bool_]) -> None:
        kept = np.flatnonzero(alive)
        numbers = np.cumsum([node.is_alive for node in self.nodes]) - 1
        self.owners = numbers[self.owners[kept]]
        self.places, self.images = self.places[kept], self.images[kept]
        self.nodes = [node for node in self.nodes if node.is_alive]
        for number, node in enumerate(self.nodes):
            node.number = number
        for layer, (keys, values) in self._layers.items():
            places = torch.from_numpy(kept).to(keys.device)
            self._layers[layer] = (keys[:, :, places], values[:, :, places])

    def visible(
        self,
        asking: NDArray[np.int64],
        window: int | None = None,
        images_see_themselves: bool = False,
    ) -> NDArray[np.bool_]:
        """Say which slots some see, (asking, slots).

        Args:
            asking: (asking,), slots.
            window: farthest place that is seen, counted back; none: all.
            images_see_themselves: whether the tokens of an image see those behind them, too.
        """
        above = np.zeros((len(self.nodes), len(self.nodes)), np.bool_)
        for number in np.unique(self.owners[asking]):
            above[number, [node.number for node in self.nodes[number].line()]] = True
        images = self.images if images_see_themselves else None
        near = are_near(self.places, images, window, asking[:, None], slice(None))
        seen: NDArray[np.bool_] = above[self.owners[asking, None], self.owners[None]] & near
        return seen

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of the last slots of a layer in place; returns all of them.

        What is not finite stands as zero: behind a mask, neighbours would take 0 x NaN from it.
        """
        end = self.slots
        start = end - keys.shape[2]
        held = self._layers.get(layer)
        if held is None or held[0].shape[2] < end:
            held = self._layers[layer] = self._grow(held, keys, start)
        for row, new in zip(held, (keys, values), strict=True):
            row[:, :, start:end] = new.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return held[0][:, :, :end], held[1][:, :, :end]

    def _grow(
        self, held: tuple[Tensor, Tensor] | None, like: Tensor, filled: int
    ) -> tuple[Tensor, Tensor]:
        room = self.slots + max(LEAST_ROOM, self.slots // 8)
        batch, heads, _, size = like.shape
        larger = like.new_empty(batch, heads, room, size), like.new_empty(batch, heads, room, size)
        for new, old in zip(larger, held or (), strict=False):
            new[:, :, :filled] = old[:, :, :filled]
        return larger


@dataclass(eq=False)
class Growth:
    """New tokens of one tree in one pass, and what they see: slots of the tree."""

    tree: Tree
    new_slots: int
    root_slots: int
    """New slots of a root, which see nothing but each other; they come first."""

    device: torch.device
    image_sight: ImageSight
    _masks: dict[int | None, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def masks(self, window: int | None) -> tuple[Tensor | None, Tensor | None]:
        """Say what is seen in a layer with a window, or without one.

        Returns:
            Of the root's new slots, (1, 1, root slots, root slots), bool; none: what came before.
            Of the others, (1, 1, other new slots, slots), bool; none: everything.
        """
        if window not in self._masks:
            self._masks[window] = self._root_mask(window), self._mask_of_others(window)
        return self._masks[window]

    def _root_mask(self, window: int | None) -> Tensor | None:
        mutual = is_mutual(self.image_sight, window)
        if not self.root_slots or not (mutual or (window is not None and window < self.root_slots)):
            return None
        seen = self.tree.visible(np.arange(self.root_slots), window, mutual)
        return self._tensor(seen[:, : self.root_slots])

    def _mask_of_others(self, window: int | None) -> Tensor | None:
        first = self.tree.slots - self.new_slots + self.root_slots
        asking = np.arange(first, self.tree.slots)
        seen = self.tree.visible(asking, window, is_mutual(self.image_sight, window))
        return None if len(asking) <= 1 and bool(seen.all()) else self._tensor(seen)

    def _tensor(self, seen: NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(seen)[None, None].to(self.device)


@dataclass(frozen=True)
class NewTokens:
    """Tokens that a node gets."""

    node: Node
    count: int
    images: NDArray[np.int64] | None = None
    """(count,), number of the image whose feature each takes, -1 for words; none: all words."""


def grow(
    tree: Tree, stretches: Sequence[NewTokens], device: torch.device, image_sight: ImageSight
) -> Growth:
    """Append tokens to nodes; their keys and values are still to come.

    Args:
        tree: to grow.
        stretches: what nodes get; a root comes first.
        device: of the model.
        image_sight: of the model.
    """
    first = stretches[0]
    root_slots = first.count if first.node.parent is None and not tree.slots else 0
    owners, places, images = [tree.owners], [tree.places], [tree.images]
    for one in stretches:
        start = one.node.end
        one.node.tokens += one.count
        owners.append(np.full(one.count, one.node.number))
        places.append(np.arange(start, start + one.count))
        images.append(np.full(one.count, -1) if one.images is None else one.images)
    new_slots = sum(one.count for one in stretches)
    tree.owners, tree.places = np.concatenate(owners), np.concatenate(places)
    tree.images = np.concatenate(images)
    return Growth(tree, new_slots, root_slots, device, image_sight)


def attend_in_trees(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    trees: Sequence[Growth],
    attend: Callable[..., Tensor],
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attend within each tree: new tokens to all that they see in it.

    Args:
        module: the attention layer, as transformers hands it over.
        query: (1, heads, new tokens of all trees, head size).
        key: (1, key heads, new tokens, head size).
        value: (1, key heads, new tokens, head size).
        trees: cover the new tokens in order.
        attend: (module, query, key, value, mask, ...) -> (1, queries, heads, head size); without a
            mask causal, or all is seen if there is one query.
        arguments: of the layer, handed on.

    Returns:
        (1, new tokens, heads, head size), and no weights.
    """
    layer: Any = module.layer_idx
    window = arguments.get("sliding_window")
    sizes = [one.new_slots for one in trees]
    chunks = []
    per_tree = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for one, (queries, new_keys, new_values) in zip(trees, per_tree, strict=True):
        keys, values = one.tree.store(layer, new_keys, new_values)
        root_mask, mask = one.masks(window)
        root, others = queries.split([one.root_slots, one.new_slots - one.root_slots], dim=2)
        if root.shape[2]:
            # The new tensors, not the slots: side by side in memory.
            seen = new_keys[:, :, : one.root_slots], new_values[:, :, : one.root_slots]
            chunks.append(attend(module, root, *seen, mask=root_mask, **arguments))
        if others.shape[2]:
            seen_by_others = attend(module, others, keys, values, mask=mask, **arguments)
            own = (each[:, :, one.root_slots :] for each in (new_keys, new_values))
            chunks.append(seen_by_others + sum(map(_nothing_or_nan, own)))
    return torch.cat(chunks, dim=1), None


def _nothing_or_nan(made: Tensor) -> Tensor:
    """Make zero of each token, NaN of one whose keys or values are not finite.

    Its own answer so shows what its slots no longer do.

    Args:
        made: (1, heads, tokens, size), keys or values.

    Returns:
        (1, tokens, 1, 1).
    """
    return (made.sum((1, 3), dtype=torch.float32) * 0).to(made.dtype)[..., None, None]
