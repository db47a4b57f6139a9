"""Scores of answers -> their mean, how sure it is, and what a change is worth (pure)."""

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
class Difference:
    """By how much the same examples score better after than before, with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
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
    return Difference(mean.value, mean.low, mean.high, mean.count, (as_large + 1) / (draws + 1))


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
