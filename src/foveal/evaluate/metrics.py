"""An answer and the accepted ones -> its score (pure)."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from foveal.data.images.boxes import Box, read_boxes
from foveal.errors import ConfigError

Metric = Callable[[str, Sequence[str]], float]
"""(prediction, accepted answers) -> score from 0 to 1; the best accepted answer counts."""

HALF = 0.5
"""Overlap from which on a box counts as found."""

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
        return float(plain(prediction) == plain(answer))
    if not ours or not theirs:
        return 0.0
    from scipy.optimize import linear_sum_assignment  # slow to import, and few scores need it

    overlaps = overlap_table(ours, theirs)
    found = overlaps[linear_sum_assignment(overlaps, maximize=True)]
    total = found.sum() if least is None else (found >= least).sum()
    return float(total / max(len(ours), len(theirs)))


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
