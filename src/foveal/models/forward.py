"""A packed row, or new tokens of trees -> hidden states, through a model's own code."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from foveal.data.forward_inputs import ForwardInputs, GroupSpan
from foveal.models.cached_rows import read_groups
from foveal.models.family import CLIP_SECONDS, Family
from foveal.models.generation.tree import Growth
from foveal.models.row_view import RowView
from foveal.models.shared_rows import PREFIX

TYPE_INPUTS = ("mm_token_type_ids", "token_type_ids")
"""By what name models are told something of each token."""


def hidden_states(
    model: Any,
    family: Family,
    inputs: ForwardInputs,
    *,
    groups: tuple[GroupSpan, ...] = (),
    trees: tuple[Growth, ...] = (),
    plainly: bool = False,
    answer_starts: Sequence[int | None] = (),
) -> Tensor:
    """Run a model up to its final norm.

    Args:
        model: of transformers, bare.
        family: of the model.
        inputs: of the pass.
        groups: of a packed row.
        trees: of new tokens, while decoding.
        plainly: read each example of a row as the model's own code reads it, with its own positions
            and masks: as a check of ours, or where ours cannot be had.
        answer_starts: of each example that is read so, where its first answer begins, from its own
            start; none: all of it is asked.

    Returns:
        (length, hidden).

    Raises:
        ValueError: the decoder attends by no form that reads rows, or examples that are to be read
            apart share a prefix.
    """
    plainly = plainly or family.route == "plain"
    attention = model.config.get_text_config()._attn_implementation
    if not plainly and not str(attention).startswith(PREFIX):
        raise ValueError(f"no packed rows with attention {attention!r}")
    # The tower before the words: gradients come in the reverse order, and processes that share
    # them as they come, with images and without, need one order.
    tower = family.encode_images(model, inputs.pixels) if inputs.pixels else None
    if plainly:
        rows = list(_apart(model, family, inputs, groups))
        starts = answer_starts or [None] * len(rows)
        pairs = zip(rows, starts, strict=True)
        made = [_plain_states(model, family, row, tower, start) for row, start in pairs]
        return made[0] if len(made) == 1 else torch.cat(made)
    if family.route == "cache":
        return _read_groups(model, family, inputs, groups, tower)
    images = None
    if tower is not None:
        images = hand_out(tower, inputs.image_features, inputs.image_indices)
    seen = {"trees": trees} if trees else {"row": _view(model, family, inputs, groups)}
    axes = inputs.positions
    hidden: Tensor = model.model(
        position_ids=axes[0] if len(axes) == 1 else axes,
        # Four axes: a model takes it for a mask that is made, and makes none of its own.
        attention_mask=torch.zeros(1, 1, 1, 1, device=inputs.input_ids.device),
        use_cache=False,
        **family.decoder_inputs(model, inputs.input_ids, images),
        **seen,
    ).last_hidden_state[0]
    return hidden


def _apart(
    model: Any, family: Family, inputs: ForwardInputs, groups: tuple[GroupSpan, ...]
) -> Iterator[ForwardInputs]:
    """Cut a row into its examples; each has all pixels, and says which it shows.

    Raises:
        ValueError: some share a prefix.
    """
    if len(groups) == 1 and not groups[0].branch_starts:
        yield inputs
        return
    if not groups or any(group.branch_starts for group in groups):
        raise ValueError("a row that shares a prefix cannot be read in the model's own way")
    images_between = _find_images(model, family, inputs)
    for group in groups:
        shown = images_between(group.start, group.end)
        yield replace(
            inputs,
            input_ids=inputs.input_ids[:, group.start : group.end],
            positions=inputs.positions[..., group.start : group.end],
            pixels=inputs.pixels if shown else {},
            image_indices=shown,
        )


def _find_images(
    model: Any, family: Family, inputs: ForwardInputs
) -> Callable[[int, int], tuple[int, ...]]:
    """Make what says which images stand from one place of a row up to another."""
    is_feature = inputs.input_ids[0] == family.image_token_id(model)
    before = [0, *is_feature.cumsum(0).tolist()]  # features before each token
    ends = [0, *accumulate(inputs.image_features[one] for one in inputs.image_indices)]
    return lambda start, end: inputs.image_indices[
        ends.index(before[start]) : ends.index(before[end])
    ]


def _plain_states(
    model: Any, family: Family, inputs: ForwardInputs, tower: Any, answer_start: int | None
) -> Tensor:
    """Run one example in the model's own way, behind what the tower made of all images."""
    taken = inspect.signature(model.model.forward).parameters
    told = family.token_types(model, inputs.input_ids, answer_start)
    grids: dict[str, Tensor] = {}
    if "image_grid_thw" in inputs.pixels:  # positions hang on it
        indices = torch.tensor(inputs.image_indices, device=told.device)
        grids = {"image_grid_thw": inputs.pixels["image_grid_thw"][indices]}
        if CLIP_SECONDS in inputs.pixels:
            told, grids = _tell_clips(inputs, told, indices, grids["image_grid_thw"])
            grids = {name: one for name, one in grids.items() if name in taken}
    types = {name: told for name in TYPE_INPUTS if name in taken}
    images = None
    if inputs.pixels:
        images = hand_out(tower, inputs.image_features, inputs.image_indices)
    hidden: Tensor = model.model(
        attention_mask=torch.ones_like(inputs.input_ids),
        use_cache=False,
        **family.decoder_inputs(model, inputs.input_ids, images),
        **types,
        **grids,
    ).last_hidden_state[0]
    return hidden


def _tell_clips(
    inputs: ForwardInputs, told: Tensor, indices: Tensor, grids: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Tell clips from images by the types and grids that a model's own positions hang on."""
    seconds = inputs.pixels[CLIP_SECONDS][indices]
    counts = torch.tensor(inputs.image_features, device=told.device)[indices]
    told = told.clone()
    told[told == 1] = (1 + (seconds > 0).long()).repeat_interleave(counts)
    is_clip = seconds > 0
    named = {"video_grid_thw": grids[is_clip], "second_per_grid_ts": seconds[is_clip]}
    return told, named | ({"image_grid_thw": grids[~is_clip]} if (~is_clip).any() else {})


def _view(
    model: Any, family: Family, inputs: ForwardInputs, groups: tuple[GroupSpan, ...]
) -> RowView:
    sight, ids = family.image_sight(model), inputs.input_ids[0]
    if sight == "causal" or not inputs.image_indices:
        return RowView(groups, ids.device)
    counts = torch.tensor([inputs.image_features[one] for one in inputs.image_indices])
    numbers = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
    images = torch.full(ids.shape, -1, dtype=torch.int32, device=ids.device)
    images[ids == family.image_token_id(model)] = numbers.to(ids.device)
    return RowView(groups, ids.device, images, sight)


def _read_groups(
    model: Any, family: Family, inputs: ForwardInputs, groups: tuple[GroupSpan, ...], tower: Any
) -> Tensor:
    images_between = _find_images(model, family, inputs)

    def images(start: int, end: int) -> Any:
        shown = images_between(start, end)
        return hand_out(tower, inputs.image_features, shown) if shown else None

    return read_groups(model, inputs.input_ids[0], inputs.positions[:, 0], groups, images)


def hand_out(made: Any, counts: Sequence[int], indices: Sequence[int]) -> Any:
    """Hand out what a tower returned for distinct images wherever one stands.

    Args:
        made: the tower's output.
        counts: features of each distinct image.
        indices: which of them stands at each place for one, in the order of the text.
    """
    placed = copy(made)
    pooled = made.pooler_output
    chosen = _choose(pooled, counts, indices)
    placed.pooler_output = torch.cat(chosen) if isinstance(pooled, Tensor) else chosen
    layers = getattr(made, "deepstack_features", None)
    if layers is not None:
        placed.deepstack_features = [_choose(layer, counts, indices) for layer in layers]
    return placed


def _choose(
    features: Tensor | Sequence[Tensor], counts: Sequence[int], indices: Sequence[int]
) -> list[Tensor]:
    whole = features if isinstance(features, Tensor) else torch.cat(list(features))
    each = whole.flatten(0, -2).split(list(counts))
    return [each[index] for index in indices]


def blank_features(family: Family, model: Any, pixels: Mapping[str, Tensor]) -> Tensor:
    """Encode an image for nothing: a number that hangs on every weight before the text, ()."""
    made = family.encode_images(model, pixels)
    pooled = made.pooler_output
    whole = pooled if isinstance(pooled, Tensor) else torch.cat(list(pooled))
    total = whole.float().sum()
    for layer in getattr(made, "deepstack_features", None) or ():
        total = total + sum(one.float().sum() for one in layer)
    return 0.0 * total
