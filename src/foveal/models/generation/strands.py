"""Sequences that go on, each from what it has read -> one padded batch of their caches.

For decoders whose layers carry a state: a tree of slots can hold keys and values alone. A prefix is
still read once; what is left of it is copied for each sequence behind it.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)


@dataclass(eq=False)
class StrandBatch:
    """Caches of several sequences; the shorter ones stand behind empty places."""

    cache: DynamicCache
    lengths: list[int]
    """Tokens that each sequence has read."""

    def mask(self, new_tokens: int) -> Tensor | None:
        """Say which places are filled, (sequences, places), once all read some; none: all are."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        places = torch.arange(longest + new_tokens)
        return places >= longest - torch.tensor(self.lengths)[:, None]

    def strands(self) -> list["Strand"]:
        """Name its rows."""
        return [Strand(self, row) for row in range(len(self.lengths))]


@dataclass(frozen=True)
class Strand:
    """What a sequence has read: a row of a batch."""

    batch: StrandBatch
    row: int

    @property
    def length(self) -> int:
        """Tokens that it has read."""
        return self.batch.lengths[self.row]


def line_up(strands: Sequence[Strand], goes_on: bool) -> StrandBatch:
    """Put sequences side by side; where they are still a batch and go on together, it is that one.

    Args:
        strands: what they have read.
        goes_on: whether nobody else goes on from there; else all is copied.
    """
    batch = strands[0].batch
    rows = [strand.row for strand in strands if strand.batch is batch]
    if goes_on and rows == list(range(len(batch.lengths))) and len(rows) == len(strands):
        return batch
    lengths = [strand.length for strand in strands]
    cache = copy(batch.cache)
    cache.layers = [
        _stack(
            [(strand.batch.cache.layers[number], strand.row, strand.length) for strand in strands]
        )
        for number in range(len(cache.layers))
    ]
    return StrandBatch(cache, lengths)


def _stack(held: Sequence[tuple[Any, int, int]]) -> Any:
    """Put a layer's cache of each sequence side by side: (layer, row, tokens)."""
    layer = copy(held[0][0])
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for name in ("conv_states", "recurrent_states"):
            states = {
                number: None
                if one is None
                else torch.cat([getattr(each, name)[number][row, None] for each, row, _ in held])
                for number, one in getattr(layer, name).items()
            }
            setattr(layer, name, states)
    if isinstance(layer, DynamicLayer):
        # A layer with a window keeps no more than that.
        kept = [min(length, each.keys.shape[2]) for each, _, length in held]
        for name in ("keys", "values"):
            rows = [
                F.pad(getattr(each, name)[row, None, :, -size:], (0, 0, max(kept) - size, 0))
                for (each, row, _), size in zip(held, kept, strict=True)
            ]
            setattr(layer, name, torch.cat(rows))
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = max(length for _, _, length in held)
    return layer
