"""Labels out of a few, each with a log-likelihood -> areas, confusion, calibration (pure)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.evaluate.intervals import (
    DRAWS,
    Difference,
    Score,
    Tally,
    _interval,
    _resamples,
    tally,
)
from foveal.evaluate.metrics import plain


def auroc(scores: ArrayLike, positive: ArrayLike) -> Tally:
    """Count the pairs of a positive and a negative example that the scores put in order.

    The area under the ROC curve is total / count (Mann and Whitney); a tie is half a pair.

    Args:
        scores: (examples,), higher for the positive.
        positive: (examples,), bool.
    """
    values, is_positive = np.asarray(scores, float), np.asarray(positive, bool)
    negatives = np.sort(values[~is_positive])
    sides = [np.searchsorted(negatives, values[is_positive], side) for side in ("left", "right")]
    return Tally(float(np.sum(sides)) / 2, int(is_positive.sum()) * negatives.size)


def macro_auroc(scores: ArrayLike, truth: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Score:
    """Average each label's area under the ROC curve, that label against the rest.

    With two labels whose scores sum to a constant both areas are the same: the usual binary AUROC.

    Args:
        scores: (examples, labels), probabilities.
        truth: (examples,), int, index of the right label.
        draws: samples behind the interval.
        seed: start of the samples.
    """
    columns, right = np.asarray(scores, float), np.asarray(truth)
    value = _macro_area(columns, right)
    low, high = _interval(_macro_areas(columns, right, draws, seed))
    return Score(value, low, high, len(right))


def auroc_difference(
    before: ArrayLike, after: ArrayLike, truth: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Compare `macro_auroc` before and after over the same examples.

    Both are taken over the same samples of the examples; the p-value is the share of samples on
    the other side of no difference, doubled.

    Args:
        before: (examples, labels), probabilities.
        after: (examples, labels), probabilities.
        truth: (examples,), int, index of the right label.
        draws: samples behind interval and p-value.
        seed: start of the samples.
    """
    right = np.asarray(truth)
    columns = [np.asarray(scores, float) for scores in (before, after)]
    first, second = (_macro_areas(some, right, draws, seed) for some in columns)
    gains = second - first
    low, high = _interval(gains)
    known = gains[np.isfinite(gains)]
    less = min(int((known <= 0).sum()), int((known >= 0).sum()))
    value = _macro_area(columns[1], right) - _macro_area(columns[0], right)
    p_value = min(1.0, 2 * (less + 1) / (known.size + 1))
    return Difference(value, low, high, len(right), p_value)


def _labels_with_both(right: NDArray[np.int64], labels: int) -> list[int]:
    return [label for label in range(labels) if 0 < (right == label).mean() < 1]


def _macro_area(columns: NDArray[np.float64], right: NDArray[np.int64]) -> float:
    labels = _labels_with_both(right, columns.shape[1])
    areas = [auroc(columns[:, label], right == label).value for label in labels]
    return float(np.mean(areas)) if areas else math.nan


def _macro_areas(
    columns: NDArray[np.float64], right: NDArray[np.int64], draws: int, seed: int
) -> NDArray[np.float64]:
    """Average the areas of each of many samples of the examples, (draws,)."""
    labels = _labels_with_both(right, columns.shape[1])
    if not labels:
        return np.full(draws, np.nan)
    return np.concatenate(
        [
            np.mean([_areas(columns[:, k], right == k, sample) for k in labels], axis=0)
            for sample in _resamples(np.ones(len(right), np.int64), draws, seed)
        ]
    )


def _areas(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AUROC of many samples at once: weights (draws, examples) say how often each one is in it."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of runs of equal scores
    sorted_weights, is_positive = weights[:, order], positive[order]
    positives = np.add.reduceat(sorted_weights * is_positive, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1)
    won = (positives * (negatives.cumsum(axis=1) - negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    areas = np.full(len(won), np.nan)  # a sample of one kind alone has no pairs, and no area
    np.divide(won, pairs, out=areas, where=pairs > 0)
    return areas


@dataclass(frozen=True)
class Confusion:
    """How often each label was answered with each label."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    """(labels, labels + 1): row the truth, column the answer; the last column is no label."""

    def per_class(self) -> dict[str, Tally]:
        """Right answers among the examples of each label."""
        rows = zip(self.labels, self.counts.diagonal(), self.counts.sum(axis=1), strict=True)
        return {label: Tally(float(right), int(count)) for label, right, count in rows}


def confusion(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Confusion:
    """Count answers by true and by answered label, labels compared as `accuracy` does."""
    place = {plain(label): index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), int)
    for right, answer in zip(truth, predicted, strict=True):
        counts[place[plain(right)], place.get(plain(answer), len(labels))] += 1
    return Confusion(tuple(labels), counts)


@dataclass(frozen=True)
class Calibration:
    """How sure the answers of one bin were, and how many of them were right."""

    confidence: Tally
    correct: Tally


def calibration(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> list[Calibration]:
    """Sort answers by the probability they were given into bins of equal width; empty ones go.

    Args:
        confidence: (examples,), probability of the answer given.
        correct: (examples,), bool or 0 to 1.
        bins: number of bins from 0 to 1.
    """
    sure, right = np.asarray(confidence, float), np.asarray(correct, float)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        Calibration(tally(sure[place == bin_]), tally(right[place == bin_]))
        for bin_ in np.unique(place)
    ]


def calibration_error(parts: Sequence[Calibration]) -> float:
    """Expected calibration error: mean gap of confidence and accuracy (Guo et al. 2017)."""
    gaps = sum(abs(part.confidence.total - part.correct.total) for part in parts)
    return Tally(gaps, sum(part.correct.count for part in parts)).value
