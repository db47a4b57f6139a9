"""Boxes of an answer and of the accepted ones -> how well they lie on each other (pure)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveal.data.images.boxes import Box, read_boxes

HALF = 0.5
"""Overlap from which on a box counts as found."""


def iou(prediction: str, answers: Sequence[str]) -> float:
    """Score the mean overlap of boxes, intersection over union, each with its best partner.

    The partners are those with the largest sum of overlaps (Hungarian method). A box without a
    partner, on either side, counts as 0. Without boxes on both sides the words have to be the same.
    """
    return max((_mean_overlap(prediction, answer) for answer in answers), default=0.0)


def iou_above_half(prediction: str, answers: Sequence[str]) -> float:
    """Score the share of boxes that overlap with their partner by one half or more."""
    return max((_mean_overlap(prediction, answer, HALF) for answer in answers), default=0.0)


def _mean_overlap(prediction: str, answer: str, least: float | None = None) -> float:
    ours, theirs = read_boxes(prediction), read_boxes(answer)
    if not ours and not theirs:
        return float(_words(prediction) == _words(answer))
    if not ours or not theirs:
        return 0.0
    from scipy.optimize import linear_sum_assignment  # slow to import, and few scores need it

    overlaps = overlap_table(ours, theirs)
    found = overlaps[linear_sum_assignment(overlaps, maximize=True)]
    total = found.sum() if least is None else (found >= least).sum()
    return float(total / max(len(ours), len(theirs)))


def _words(text: str) -> str:
    return text.strip().strip(".").lower()


def overlap_table(ours: Sequence[Box], theirs: Sequence[Box]) -> NDArray[np.float64]:
    """Work out intersection over union of every two boxes, (ours, theirs); no area overlaps 0."""
    one, other = np.asarray(ours, float)[:, None], np.asarray(theirs, float)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    common = sides.clip(0).prod(-1)
    union = _area(one) + _area(other) - common
    overlaps: NDArray[np.float64] = np.zeros_like(common)
    np.divide(common, union, out=overlaps, where=union > 0)
    return overlaps


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1)
    return area
