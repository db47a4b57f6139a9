"""Prompts in memory -> what planning asks of them, found by comparing whole beginnings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import Ragged, sum_lists
from foveal.data.row_planning.groups import Sizes


def sizes_in_memory(
    tokens: NDArray[np.int32],
    prompts: Ragged,
    images: Ragged,
    image_tokens: NDArray[np.int32],
    image_crops: NDArray[np.int32],
    **others: Any,
) -> Sizes:
    """Make the sizes of examples that are on no disk; for the arguments see `Sizes`."""
    entries, owners = image_entries(prompts)
    ends = np.cumsum(np.bincount(owners, minlength=len(prompts)))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    shown = -1 - prompts.values[entries]
    extra = sum_lists(image_tokens[shown] - 1, starts, ends)
    crops = sum_lists(image_crops[shown], starts, ends)
    all_crops = sum_lists(image_crops[images.values], images.offsets[:-1], images.offsets[1:])
    last = prompts.offsets[:-1].copy()
    np.maximum.at(last, owners, entries + 1)
    begun = (last - prompts.offsets[:-1]).astype(np.int32)
    found = prompt_families(prompts).astype(np.int32)
    return Sizes(
        tokens,
        images,
        image_tokens,
        image_crops,
        prefix_groups=found,
        extra_tokens=extra,
        crops=crops,
        later_crops=all_crops - crops,
        beginning_tokens=begun + extra,
        prompts=prompts,
        **others,
    )


def prompt_families(prompts: Ragged) -> NDArray[np.int64]:
    """Number the examples so that equal numbers mean: the same up to the last image of the prompt.

    An example whose prompt shows no image has a number of its own.
    """
    entries, owners = image_entries(prompts)
    ends = prompts.offsets[:-1].copy()
    np.maximum.at(ends, owners, entries + 1)
    numbers: dict[bytes | int, int] = {}
    # A dictionary finds by hash and then compares the whole beginning: nothing is guessed.
    beginnings = (
        prompts.values[start:end].tobytes() or example
        for example, (start, end) in enumerate(zip(prompts.offsets, ends, strict=False))
    )
    found = (numbers.setdefault(beginning, len(numbers)) for beginning in beginnings)
    return np.fromiter(found, np.int64, len(prompts))


def image_entries(prompts: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find where images stand in the values, and in which prompt that is."""
    entries = np.flatnonzero(prompts.values < 0)
    return entries, np.searchsorted(prompts.offsets, entries, side="right") - 1
