"""Tree: keys and values of one prefix and all that branches from it, in one row of slots.

A node is a stretch of tokens; it sees the nodes above it and what stands before it in itself. A
prefix is so kept once, however many answers grow behind it.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

TREES = "foveal_trees"
"""Name under which `trees_attention_forward` is registered with transformers."""

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
        self.nodes = [node for node in self.nodes if node.is_alive]
        for number, node in enumerate(self.nodes):
            node.number = number
        for layer, (keys, values) in self._layers.items():
            places = torch.from_numpy(kept).to(keys.device)
            self._layers[layer] = (keys[:, :, places], values[:, :, places])

    def visible(self, asking: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which slots the last ones see, (asking, slots).

        Args:
            asking: (asking,), numbers of the nodes of the last slots.
        """
        above = np.zeros((len(self.nodes), len(self.nodes)), np.bool_)
        for number in np.unique(asking):
            above[number, [node.number for node in self.nodes[number].line()]] = True
        seen: NDArray[np.bool_] = above[asking[:, None], self.owners[None]]
        return np.tril(seen, self.slots - len(asking))

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


@dataclass(frozen=True)
class Growth:
    """New tokens of one tree in one pass: where each belongs and what it sees."""

    tree: Tree
    new_slots: int
    root_slots: int
    """New slots of a root, which see each other causally and nothing else; they come first."""

    mask: Tensor | None
    """(1, 1, other new slots, slots), bool; none: all is seen."""


def grow(tree: Tree, stretches: Sequence[tuple[Node, int]], device: torch.device) -> Growth:
    """Append tokens to nodes; their keys and values are still to come.

    Args:
        tree: to grow.
        stretches: (node, tokens); a root comes first.
        device: of the model.
    """
    nodes, counts = zip(*stretches, strict=True)
    owners = np.repeat([node.number for node in nodes], counts)
    root_slots = counts[0] if nodes[0].parent is None and not tree.slots else 0
    tree.owners = np.concatenate([tree.owners, owners])
    for node, count in stretches:
        node.tokens += count
    seen = tree.visible(owners[root_slots:])
    all_seen = len(owners) - root_slots <= 1 and bool(seen.all())
    mask = None if all_seen else torch.from_numpy(seen)[None, None].to(device)
    return Growth(tree, len(owners), root_slots, mask)


def trees_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    trees: Sequence[Growth] = (),
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attend within each tree: new tokens to all that they see in it.

    Args:
        module: the attention layer, as transformers hands it over.
        query: (1, heads, new tokens of all trees, head size).
        key: (1, key heads, new tokens, head size).
        value: (1, key heads, new tokens, head size).
        attention_mask: none; who sees whom stands in `trees`.
        trees: cover the new tokens in order.
        arguments: dropout and scaling, handed on.

    Returns:
        (1, new tokens, heads, head size), and no weights.
    """
    layer: Any = module.layer_idx
    sizes = [one.new_slots for one in trees]
    pieces = []
    per_tree = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for one, (queries, new_keys, new_values) in zip(trees, per_tree, strict=True):
        keys, values = one.tree.store(layer, new_keys, new_values)
        root, others = queries.split([one.root_slots, one.new_slots - one.root_slots], dim=2)
        if root.shape[2]:
            # The new tensors, not the slots: side by side in memory.
            seen = new_keys[:, :, : one.root_slots], new_values[:, :, : one.root_slots]
            pieces.append(
                sdpa_attention_forward(module, root, *seen, None, is_causal=True, **arguments)[0]
            )
        if others.shape[2]:
            seen_by_others = sdpa_attention_forward(
                module, others, keys, values, one.mask, is_causal=False, **arguments
            )[0]
            own = (each[:, :, one.root_slots :] for each in (new_keys, new_values))
            pieces.append(seen_by_others + sum(map(_nothing_or_nan, own)))
    return torch.cat(pieces, dim=1), None


def _nothing_or_nan(made: Tensor) -> Tensor:
    """Make zero of each token, NaN of one whose keys or values are not finite.

    Its own answer so shows what its slots no longer do.

    Args:
        made: (1, heads, tokens, size), keys or values.

    Returns:
        (1, tokens, 1, 1).
    """
    return (made.sum((1, 3), dtype=torch.float32) * 0).to(made.dtype)[..., None, None]


AttentionInterface.register(TREES, trees_attention_forward)


@contextmanager
def attending_in_trees(config: Any) -> Iterator[None]:
    """Let a model's decoder attend in trees; transformers looks the name up at each call."""
    usual = config._attn_implementation
    config._attn_implementation = {"": TREES}  # of the decoder alone, not of the tower
    try:
        yield
    finally:
        config._attn_implementation = {"": usual}
