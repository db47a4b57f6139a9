"""A row, or sequences that go on -> hidden states, for decoders that carry a state between tokens.

No attention can say who sees whom in layers that are recurrent or that convolve: whatever stands
before a token in the row has gone into it. So the prefix of a group is read with a cache, what the
cache holds is repeated for each branch, and the branches go on from there side by side. One
backward pass goes through all of it.

An answer goes on so too, token by token. A tree of slots can hold keys and values alone: sequences
that go on together have their caches in one padded batch.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    get_layer_types_and_kwargs,
)

from foveal.data.forward_inputs import GroupSpan
from foveal.errors import ModelError

ATTENTION = frozenset({"full_attention", "sliding_attention", "dummy"})
"""Kinds of layers of which a mask says all; a dummy one looks up what another has read."""

STATEFUL = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding"})
"""Kinds whose cache can be repeated: `repeat` and `_fresh` know what it holds."""


def reads_with_cache(name: str, config: Any, skeleton: nn.Module) -> bool:
    """Tell whether a decoder has layers that carry a state from token to token.

    Args:
        name: of the model, for errors.
        config: of the decoder.
        skeleton: the decoder, with or without weights.

    Raises:
        ModelError: it has layers of a kind that is not known here, or states that its
            configuration does not speak of.
    """
    kinds = set(get_layer_types_and_kwargs(config)[0])
    unknown = sorted(kinds - ATTENTION - STATEFUL)
    if unknown:
        raise ModelError(
            f"model {name}: its decoder has layers of the kind {unknown[0]!r}, of which it is not "
            "known here what a token sees; train another model"
        )
    if not kinds <= ATTENTION:
        return True
    # Two signs of a state; a convolution would see its neighbours in the row.
    convolves = any(isinstance(one, nn.Conv1d) for one in skeleton.modules())
    if convolves or getattr(skeleton, "_is_stateful", False):
        raise ModelError(
            f"model {name}: its decoder carries a state from token to token, and its configuration "
            "does not say in which layers (layer_types); train another model"
        )
    return False


def repeat(cache: DynamicCache, times: int) -> None:
    """Make what a cache holds of one sequence the beginning of several."""
    cache.reorder_cache(torch.zeros(times, dtype=torch.long))
    cache.layers[:] = [_fresh(layer) for layer in cache.layers]


def _fresh(layer: Any) -> Any:
    """Copy a layer's cache so that going on from the copy leaves the layer's own alone.

    Keys and values are put anew at each update. States are written over in place: a convolution's
    is small and copied; a recurrent one, which the backward pass needs, is given a new tensor to be
    written to, as if there had been none.
    """
    fresh = copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # of each state of a layer
            setattr(fresh, name, dict(value))
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        states = layer.conv_states.items()
        fresh.conv_states = {at: None if one is None else one.clone() for at, one in states}
        fresh.is_recurrent_states_initialized = dict.fromkeys(layer.recurrent_states, False)
    return fresh


def read(
    model: Any,
    ids: Tensor,
    positions: Tensor,
    images: Any,
    cache: DynamicCache | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Run a model on sequences, from where a cache has come to.

    Args:
        model: of transformers, bare.
        ids: (batch, length), int64.
        positions: (axes, batch, length), int64.
        images: what the tower returned, of the images in `ids` in their order; none: there are
            none.
        cache: that is gone on from and grows; none: the sequences begin here and end here.
        mask: (batch, tokens of the cache and of `ids`), whether a token is there; none: all are.

    Returns:
        (batch, length, hidden).
    """
    hidden: Tensor = model.model(
        input_ids=ids,
        position_ids=positions[0] if len(positions) == 1 else positions,
        attention_mask=mask,
        mm_encoder_outputs=None if images is None else {"image": images},
        past_key_values=cache,
        use_cache=False,  # no other one is made
    ).last_hidden_state
    return hidden


def read_groups(
    model: Any,
    ids: Tensor,
    positions: Tensor,
    groups: Sequence[GroupSpan],
    images: Callable[[int, int], Any],
) -> Tensor:
    """Read each group of a row: its prefix, then its branches behind it.

    Args:
        model: of transformers, bare.
        ids: (length,), int64.
        positions: (axes, length), int64.
        groups: cover the row.
        images: (start, end), places in the row -> what the tower returned, of the images in
            between; none: there are none.

    Returns:
        (length, hidden).
    """

    def read_part(places: Tensor, start: int, end: int, cache: DynamicCache | None) -> Tensor:
        return read(model, ids[places], positions[:, places], images(start, end), cache)

    chunks = []
    for group in groups:
        branches = group.branches
        cache = DynamicCache(config=model.config) if branches else None
        prefix = torch.arange(group.start, group.prefix_end, device=ids.device)
        chunks.append(read_part(prefix[None], group.start, group.prefix_end, cache)[0])
        if cache is None:
            continue
        repeat(cache, len(branches))
        starts, ends = torch.tensor(branches, device=ids.device).T
        places = starts[:, None] + torch.arange(int((ends - starts).max()), device=ids.device)
        # A short branch ends with its last token over and over, which nothing before it sees.
        padded = places.minimum(ends[:, None] - 1)
        hidden = read_part(padded, group.prefix_end, group.end, cache)
        chunks.append(hidden[places < ends[:, None]])
    return torch.cat(chunks)


def recompute_with_cache(model: Any) -> None:
    """Let the decoder's layers be run again in the backward pass from the cache they first met.

    transformers drops a cache where layers are run again, since they would write to it twice. Here
    each run of a layer writes to a copy of its own.
    """
    for number, block in enumerate(model.get_decoder().layers):
        block._can_checkpoint_with_cache = True
        keep = partial(_run_again, block._gradient_checkpointing_func, number)
        block._gradient_checkpointing_func = keep


def _run_again(checkpoint: Callable[..., Any], number: int, run: Any, hidden: Tensor) -> Tensor:
    given = run.keywords
    name = next((name for name, one in given.items() if isinstance(one, Cache)), None)
    if name is None:
        made: Tensor = checkpoint(run, hidden)
        return made
    before, others = given[name].layers[number], {**given, name: None}

    def run_alone(hidden: Tensor) -> tuple[Tensor, Any]:
        # Of this layer alone: the backward pass would hold on to the cache of all others as well.
        own = DynamicCache()
        own.layers = [None] * number + [_fresh(before)]
        made = run.func(*run.args, hidden, **{**others, name: own})
        return made, own.layers[number]

    hidden, given[name].layers[number] = checkpoint(run_alone, hidden)
    return hidden


# -- sequences that go on --------------------------------------------------------------------------


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
