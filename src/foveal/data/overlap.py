"""Two data sets -> what the second holds that is learnt from in the first."""

import numpy as np
from numpy.typing import NDArray

from foveal.data.archives import size_bytes
from foveal.data.column_files import digest_of
from foveal.data.dataset import Dataset
from foveal.data.packed import EncodedExamples


def describe_overlap(training: Dataset, validation: Dataset) -> str:
    """Say how many validation examples are training examples too; nothing where none is.

    The same tokens, answers too, and pictures of the same number of bytes make the same example,
    whatever its id and wherever its files lie.
    """
    # Most are told apart by the names of their entries, which are at hand; the rest by the entries.
    candidates = np.flatnonzero(np.isin(_names(training), _names(validation))).tolist()
    learnt = {(_tokens(training, place), _picture_bytes(training, place)) for place in candidates}
    again = [
        place
        for place in range(len(validation.examples))
        if learnt and (_tokens(validation, place), _picture_bytes(validation, place)) in learnt
    ]
    if not again:
        return ""
    return (
        f"{len(again):,} of {len(validation.examples):,} validation examples are training examples "
        f"too, such as {validation.examples[again[0]].id}: their scores tell what was learnt by "
        "heart"
    )


def _names(dataset: Dataset) -> NDArray[np.uint64]:
    if isinstance(dataset.examples, EncodedExamples):
        return dataset.examples.contents
    names = b"".join(digest_of(one.entries.tobytes(), 1) for one in dataset.examples)
    return np.frombuffer(names, np.uint64)


def _tokens(dataset: Dataset, place: int) -> bytes:
    return dataset.examples[place].entries.tobytes()


def _picture_bytes(dataset: Dataset, place: int) -> tuple[int, ...]:
    return tuple(size_bytes(dataset.images[image].path) for image in dataset.image_numbers(place))
