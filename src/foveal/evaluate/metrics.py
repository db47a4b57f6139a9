"""Answers and accepted answers -> scores, their spread, and what a change is worth (pure)."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rapidfuzz.distance import Levenshtein

from foveal.errors import ConfigError
from foveal.evaluate.box_overlap import iou, iou_above_half

Metric = Callable[[str, Sequence[str]], float]
"""(prediction, accepted answers) -> score from 0 to 1; the best accepted answer counts."""

DRAWS = 10_000
"""Samples behind an interval or a p-value."""

CONFIDENCE = 0.95
"""Share of samples that an interval holds."""

CELLS_AT_ONCE = 2_000_000
"""Numbers drawn at once, 16 MB an array: bounds the memory, changes no result."""


# Scores of one answer. A new metric is one function here and its name in METRICS.


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score 1 for an accepted answer as the published recipe compares them; case does not count."""
    return float(plain(prediction) in map(plain, answers))


def plain(text: str) -> str:
    """Strip white space, then full stops, and lower the case: what the recipe compares."""
    return text.strip().strip(".").lower()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Score 1 for an accepted answer to the character; white space around it does not count."""
    return float(prediction.strip() in (answer.strip() for answer in answers))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Score normalised Levenshtein similarity as DocVQA's own scorer does; below 0.5 counts as 0.

    Distances are taken with the case lowered and white space folded, lengths before that: so do
    the official script, lmms-eval and VLMEvalKit, and published numbers are made with it.
    """

    def distance(answer: str) -> float:
        length = max(len(answer.upper()), len(prediction.upper()))
        return Levenshtein.distance(_fold(answer), _fold(prediction)) / length if length else 0.0

    similarity = 1 - min(map(distance, answers), default=1.0)
    return similarity if similarity >= 0.5 else 0.0


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


def anls_cookbook(prediction: str, answers: Sequence[str]) -> float:
    """Score ANLS as the published recipe does: case counts, an empty answer is wrong."""
    stripped = prediction.strip().strip(".")
    if not stripped:
        return 0.0
    distance = min(
        (Levenshtein.normalized_distance(answer, stripped) for answer in answers), default=1.0
    )
    return 1 - distance if distance < 0.5 else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score 1 for a number within 5 % of an accepted one, or the same text (ChartQA).

    Masry et al. 2022, section 5.1, in its public form: `%` divides by 100, zero is text.
    """

    def right(answer: str) -> bool:
        truth, guess = _number(answer), _number(prediction)
        if guess is not None and truth:
            return abs(guess - truth) <= 0.05 * abs(truth)
        return prediction.strip().lower() == answer.strip().lower()

    return float(any(map(right, answers)))


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Score the overlap of words, order aside, as SQuAD 2.0 does (Rajpurkar et al. 2018)."""
    return max((_word_overlap(_words(prediction), _words(answer)) for answer in answers), default=0)


def _words(text: str) -> list[str]:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _word_overlap(guess: list[str], truth: list[str]) -> float:
    if not guess or not truth:
        return float(guess == truth)
    return 2 * (Counter(guess) & Counter(truth)).total() / (len(guess) + len(truth))


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "anls": anls,
    "anls_cookbook": anls_cookbook,
    "exact_match": exact_match,
    "iou": iou,
    "iou_above_half": iou_above_half,
    "relaxed_accuracy": relaxed_accuracy,
    "token_f1": token_f1,
}


def find_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Look metrics up by name.

    Raises:
        ConfigError: there is no metric of that name.
    """
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name}; choose from {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


# Sums and counts, which add up over examples, batches and processes.


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


# How sure a score is.


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


def score(scores: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Score:
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
    mean = score(gains, draws, seed)
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


# Closed answers: a label out of a few, each with a log-likelihood.


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
