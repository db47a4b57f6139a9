"""Scores of answers -> their mean or area, how sure it is, and what a change is worth (pure)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 10_000
"""Samples behind an interval or a p-value."""

CONFIDENCE = 0.95
"""Share of samples that an interval holds."""

CELLS_AT_ONCE = 2_000_000
"""Numbers drawn at once, 16 MB an array: bounds the memory, changes no result."""


@dataclass(frozen=True)
class Tally:
    """A sum and how many things it was summed over."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; not a number where nothing was counted."""
        return self.total / self.count if self.count else math.nan


def tally(scores: ArrayLike) -> Tally:
    """Sum the scores of some examples."""
    values = np.asarray(scores, float)
    return Tally(float(values.sum()), values.size)


@dataclass(frozen=True)
class Score:
    """A score over a set of examples and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference(Score):
    """By how much the same examples score better after than before, with its 95 % interval."""

    p_value: float
    """Chance of a difference at least this large, either way, if before and after were alike."""


def summarize_scores(scores: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Score:
    """Take the mean over examples and its bootstrap interval (Efron, percentile method)."""
    mean = tally(scores)
    low, high = _interval(bootstrap_means(scores, draws, seed))
    return Score(mean.value, low, high, mean.count)


def difference(
    before: ArrayLike, after: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Compare two scores of each example, pair by pair.

    The p-value is that of the sign-flip test: were before and after alike, each example's
    difference would be as likely with the other sign.

    Raises:
        ValueError: the two do not hold the same number of examples.
    """
    if np.shape(before) != np.shape(after):
        raise ValueError(f"before {np.shape(before)} and after {np.shape(after)} are no pairs")
    gains = np.asarray(after, float) - np.asarray(before, float)
    mean = summarize_scores(gains, draws, seed)
    sizes, counts = np.unique(np.abs(gains).round(12), return_counts=True)
    flipped = np.zeros(draws)
    generator = np.random.default_rng(seed)
    for size, count in zip(sizes, counts, strict=True):
        flipped += size * (2 * generator.binomial(count, 0.5, draws) - count)
    # A hair of tolerance, since sums of the same numbers in another order differ by rounding.
    as_large = int((np.abs(flipped) >= abs(gains.sum()) - 1e-9).sum())
    return Difference(**vars(mean), p_value=(as_large + 1) / (draws + 1))


def bootstrap_means(scores: ArrayLike, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Take the mean of each of many samples of the examples, drawn with replacement.

    Returns:
        (draws,), float64; empty without examples.
    """
    values, counts = np.unique(np.asarray(scores, float), return_counts=True)
    if not values.size:
        return np.empty(0)
    means = [sample @ values / counts.sum() for sample in _resamples(counts, draws, seed)]
    return np.concatenate(means)


def _resamples(counts: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draw samples as large as the original; yields, some at a time, (samples, cells) counts.

    Examples with the same score are one cell. How often each cell turns up is multinomial, so
    for right-or-wrong scores a sample costs two numbers however many examples there are; where
    cells are many, drawing the examples themselves is faster, from the same distribution.
    """
    generator = np.random.default_rng(seed)
    cells, examples = len(counts), int(counts.sum())
    few_cells = examples > 8 * cells
    cell_of = np.repeat(np.arange(cells), counts)
    at_once = max(1, CELLS_AT_ONCE // (cells if few_cells else examples))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        if few_cells:
            yield generator.multinomial(examples, counts / examples, size=size)
        else:
            drawn = cell_of[generator.integers(examples, size=(size, examples))]
            drawn += cells * np.arange(size)[:, None]
            yield np.bincount(drawn.ravel(), minlength=size * cells).reshape(size, cells)


def _interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    samples = samples[np.isfinite(samples)]
    if not samples.size:
        return math.nan, math.nan
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def macro_auroc(scores: ArrayLike, truth: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Score:
    """Average each label's area under the ROC curve, that label against the rest.

    It is the share of pairs of a positive and a negative example that the scores put in order
    (Mann and Whitney); a tie is half a pair.
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
    once, labels = np.ones((1, len(right)), np.int64), _labels_with_both(right, columns.shape[1])
    areas = [_areas(columns[:, label], right == label, once)[0] for label in labels]
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
