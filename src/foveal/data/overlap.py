"""Two data sets -> what the second holds that is learnt from in the first."""

import numpy as np

from foveal.data.dataset import Dataset
from foveal.data.frames import file_of


def describe_overlap(training: Dataset, validation: Dataset) -> str:
    """Say how many validation examples are training examples too; nothing where none is.

    The same tokens, answers too, and pictures of the same number of bytes make the same example,
    whatever its id and wherever its files lie.
    """
    # Most are told apart by their lengths, which are at hand; the rest by their tokens.
    lengths = np.unique(validation.sizes.tokens)
    candidates = np.flatnonzero(np.isin(training.sizes.tokens, lengths)).tolist()
    wanted = {_tokens(validation, place) for place in range(len(validation.examples))}
    learnt = {
        (_tokens(training, place), _picture_bytes(training, place))
        for place in candidates
        if _tokens(training, place) in wanted
    }
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


def _tokens(dataset: Dataset, place: int) -> bytes:
    return dataset.examples[place].entries.tobytes()


def _picture_bytes(dataset: Dataset, place: int) -> tuple[int, ...]:
    paths = (file_of(dataset.images[image].path) for image in dataset.image_numbers(place))
    return tuple(path.stat().st_size if path.exists() else -1 for path in paths)
