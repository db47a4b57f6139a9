"""Two evaluations of a run -> what changed: scores, how likely pairs are, which label for which."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.evaluate.intervals import (
    Difference,
    Score,
    Tally,
    auroc_difference,
    difference,
    summarize_scores,
)
from foveal.evaluate.metrics import plain
from foveal.evaluate.prediction import Prediction, common_labels, right_label
from foveal.report.gallery import Pair
from foveal.report.run_folder import Evaluation, Run

MATRIX_LABELS = 12
"""Most labels of a confusion matrix; of more, the commonest confusions are listed."""

COMMONEST = 15
"""Confusions that are listed."""


@dataclass(frozen=True)
class ScoreRow:
    """One metric, or one number about pairs, before and after."""

    metric: str
    before: Score | None
    after: Score
    difference: Difference | None
    published: float | None = None


def score_rows(
    before: Evaluation | None, after: Evaluation | None, published: Mapping[str, float]
) -> list[ScoreRow]:
    """Set the scores of two evaluations side by side, with the difference answer by answer."""
    if after is None:
        return []
    return [
        ScoreRow(
            metric,
            before.score(metric) if before else None,
            found,
            paired_difference(before, after, metric) if before else None,
            published.get(metric),
        )
        for metric, found in after.scores.items()
    ]


def paired_difference(before: Evaluation, after: Evaluation, metric: str) -> Difference | None:
    """Compare two evaluations over the turns that both were asked; none where there are none."""
    earlier = {(one.key, one.answers): one for one in before.predictions}
    asked = [((one.key, one.answers), one) for one in after.predictions]
    pairs = [(earlier[key], one) for key, one in asked if key in earlier]
    if metric == "auroc":
        return _auroc_difference(pairs)
    scores = [(first.score(metric), second.score(metric)) for first, second in pairs]
    known = [(one, other) for one, other in scores if one is not None and other is not None]
    if not known:
        return None
    first_scores, second_scores = zip(*known, strict=True)
    return difference(first_scores, second_scores)


def _auroc_difference(pairs: Sequence[tuple[Prediction, Prediction]]) -> Difference | None:
    closed = [pair for pair in pairs if pair[0].choice_scores and pair[1].choice_scores]
    labels = common_labels([one for pair in closed for one in pair])
    places = [(right_label(second, labels), first, second) for first, second in closed]
    known = [one for one in places if one[0] is not None]
    if not known:
        return None
    truth, firsts, seconds = zip(*known, strict=True)
    before, after = ([one.chances(labels) for one in some] for some in (firsts, seconds))
    return auroc_difference(before, after, truth)


Likelihoods = tuple[float, float]
"""Log-probabilities of the better and the worse answer of a pair, nats."""

ROWS: dict[str, Callable[[Likelihoods], float]] = {
    "Margin": lambda pair: pair[0] - pair[1],
    "Log-probability of chosen answers": lambda pair: pair[0],
    "Log-probability of rejected answers": lambda pair: pair[1],
}


def pair_rows(before: Sequence[Prediction], after: Sequence[Prediction]) -> list[ScoreRow]:
    """Set two evaluations side by side, pair by pair; empty where no answers were compared."""
    now, then = dict(_pairs(after)), dict(_pairs(before))
    if not now:
        return []
    both = [(then[key], now[key]) for key in now if key in then]
    rows = []
    for title, take in ROWS.items():
        earlier, later = ([take(pair[moment]) for pair in both] for moment in (0, 1))
        rows.append(
            ScoreRow(
                title,
                summarize_scores([take(one) for one in then.values()]) if then else None,
                summarize_scores([take(one) for one in now.values()]),
                difference(earlier, later) if both else None,
            )
        )
    if both:
        moved = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) / 2 for pair in both]
        rows.append(
            ScoreRow("Distance of an answer from before", None, summarize_scores(moved), None)
        )
    return rows


def _pairs(predictions: Sequence[Prediction]) -> Iterator[tuple[object, Likelihoods]]:
    for one in predictions:
        given, *rejected = one.compared or (0.0,)
        for number, worse in enumerate(rejected):
            yield (one.key, one.answers, number), (given, worse)


@dataclass(frozen=True)
class Confusion:
    """How often each label was answered with each label."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    """(labels, labels + 1): row the truth, column the answer; the last column is no label."""

    title: str = ""
    """Of the evaluation."""

    @property
    def is_small(self) -> bool:
        """Whether the matrix can be read as a table."""
        return len(self.labels) <= MATRIX_LABELS

    @property
    def answers(self) -> tuple[str, ...]:
        """Heads of the columns; no label has one only where it occurred."""
        return (*self.labels, *(["none of them"] if self.counts[:, -1].any() else []))

    @property
    def commonest(self) -> list[tuple[str, str, int]]:
        """(truth, answer, count) of what was taken for another, the most frequent first."""
        answers = (*self.labels, "none of them")
        wrong = [
            (truth, answer, int(self.counts[row, column]))
            for row, truth in enumerate(self.labels)
            for column, answer in enumerate(answers)
            if row != column and self.counts[row, column]
        ]
        return sorted(wrong, key=lambda each: -each[2])[:COMMONEST]

    def per_class(self) -> dict[str, Tally]:
        """Right answers among the examples of each label."""
        rows = zip(self.labels, self.counts.diagonal(), self.counts.sum(axis=1), strict=True)
        return {label: Tally(float(right), int(count)) for label, right, count in rows}


def confusion(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str], title: str = ""
) -> Confusion:
    """Count answers by true and by answered label, labels compared as `accuracy` does."""
    place = {plain(label): index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), int)
    for right, answer in zip(truth, predicted, strict=True):
        counts[place[plain(right)], place.get(plain(answer), len(labels))] += 1
    return Confusion(tuple(labels), counts, title)


def confusions(run: Run, pairs: Sequence[Pair]) -> list[Confusion]:
    """Count which labels were taken for which, before and now; nothing for open answers."""
    labels = _closed_labels(pairs)
    found = []
    for one in (run.before, run.latest):
        answers = [(right_label(each, labels), each) for each in one.predictions] if one else []
        known = [(labels[place], each.prediction) for place, each in answers if place is not None]
        if one and known:
            truth, given = zip(*known, strict=True)
            found.append(confusion(truth, given, labels, one.title))
    return found


def _closed_labels(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Find the labels: what the data offers, what was chosen from, or the few answers there are."""
    offers = {pair.example.turns[pair.after.turn].choices if pair.example else () for pair in pairs}
    labels = offers.pop() if len(offers) == 1 else ()
    labels = labels or common_labels([pair.after for pair in pairs])
    if labels:
        return labels
    firsts = [pair.after.answers[0] for pair in pairs if pair.after.answers]
    few = {plain(answer): answer for answer in firsts}
    is_closed = 2 <= len(few) <= MATRIX_LABELS and len(pairs) >= 5 * len(few)
    return tuple(few[key] for key in sorted(few)) if is_closed else ()
