"""Data sets -> what is worth saying before a run: overlaps, examples that are too long."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.dataset import Dataset
from foveal.data.encode import Encoded
from foveal.data.images.archives import open_stored, size_bytes
from foveal.data.images.frames import file_of
from foveal.data.images.objects import object_at
from foveal.errors import DataError

CHUNKS, LOOKED_AT = 16, 4096
"""How many pieces of a file are looked into, and the bytes of each."""


def describe_overlap(training: Dataset, validation: Dataset) -> str:
    """Say how many validation examples are training examples too; nothing where none is.

    The same tokens, answers too, and images of the same bytes make the same example, whatever its
    id and wherever its files lie. Of images in a store their number alone is compared: nothing is
    fetched for it.
    """
    # Most are told apart by the names of their entries, which are at hand; the rest by the entries,
    # by how long the files are, and at last by what stands in them.
    candidates = np.flatnonzero(
        np.isin(training.examples.contents, validation.examples.contents)
    ).tolist()
    learnt: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}
    for place in candidates:
        learnt.setdefault(_kind(training, place), []).append(place)

    @cache
    def shown(kind: tuple[bytes, tuple[int, ...]]) -> set[tuple[bytes, ...] | None]:
        return {_contents(training, place) for place in learnt[kind]}

    def is_learnt(place: int) -> bool:
        kind = _kind(validation, place)
        if kind not in learnt:
            return False
        contents = _contents(validation, place)
        return contents is None or not shown(kind).isdisjoint((contents, None))

    again = [place for place in range(len(validation.examples)) if learnt and is_learnt(place)]
    if not again:
        return ""
    return (
        f"{len(again):,} of {len(validation.examples):,} validation examples are training examples "
        f"too, such as {validation.examples[again[0]].id}: their scores tell what was learnt by "
        "heart"
    )


def _kind(dataset: Dataset, place: int) -> tuple[bytes, tuple[int, ...]]:
    files = (dataset.images[image].path for image in dataset.image_numbers(place))
    return dataset.examples[place].entries.tobytes(), tuple(map(size_bytes, files))


def _contents(dataset: Dataset, place: int) -> tuple[bytes, ...] | None:
    """Look into the images of an example; none: one is in a store, or gone."""
    files = [file_of(dataset.images[image].path) for image in dataset.image_numbers(place)]
    if any(object_at(file) for file in files):
        return None
    try:
        return tuple(map(_glimpse, files))
    except (OSError, DataError):
        return None


def _glimpse(path: Path) -> bytes:
    """Read pieces of a file, from its first to its last byte: a small one is read whole."""
    behind = max(size_bytes(path) - LOOKED_AT, 0)
    digest = sha256()
    with open_stored(path) as file:
        for number in range(CHUNKS):
            file.seek(behind * number // (CHUNKS - 1))
            digest.update(file.read(LOOKED_AT))
    return digest.digest()


def check_lengths(
    tokens: NDArray[np.int32],
    examples: Sequence[Encoded],
    window: int | None,
    tokens_per_pass: int,
    image_setting: str,
) -> str | None:
    """Compare the lengths of examples with what a model and a pass can hold.

    Args:
        tokens: of each example.
        examples: the same, for their ids.
        window: most tokens that the model was made for; none: not known.
        tokens_per_pass: of the recipe.
        image_setting: which of its settings says how much of an image is read.

    Returns:
        What is worth saying about those that fill a pass alone.

    Raises:
        DataError: one is longer than the model's window.
    """
    longest = int(tokens.argmax())
    if window is not None and tokens[longest] > window:
        count = int((tokens > window).sum())
        raise DataError(
            f"example {examples[longest].id} has {tokens[longest]:,} tokens, more than the "
            f"{window:,} that the model was made for ({count:,} such); shorten it, or lower "
            f"{image_setting}"
        )
    count = int((tokens > tokens_per_pass).sum())
    if not count:
        return None
    return (
        f"{count:,} examples are longer than train.tokens_per_pass={tokens_per_pass:,} and fill a "
        f"pass alone; the longest, {examples[longest].id}, has {tokens[longest]:,} tokens"
    )
