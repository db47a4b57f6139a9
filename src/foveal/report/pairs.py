"""How likely the answers of pairs were, before and after -> rows of a table, nats."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from foveal.evaluate.intervals import Difference, Score, difference, summarize_scores
from foveal.evaluate.prediction import Prediction

Likelihoods = tuple[float, float]
"""Log-probabilities of the better and the worse answer of a pair, nats."""

ROWS: dict[str, Callable[[Likelihoods], float]] = {
    "Margin": lambda pair: pair[0] - pair[1],
    "Log-probability of chosen answers": lambda pair: pair[0],
    "Log-probability of rejected answers": lambda pair: pair[1],
}


@dataclass(frozen=True)
class PairRow:
    """One number about pairs, before and after."""

    title: str
    before: Score | None
    after: Score
    difference: Difference | None


def pair_rows(before: Sequence[Prediction], after: Sequence[Prediction]) -> list[PairRow]:
    """Set two evaluations side by side, pair by pair; empty where no answers were compared."""
    now, then = dict(_pairs(after)), dict(_pairs(before))
    if not now:
        return []
    both = [(then[key], now[key]) for key in now if key in then]
    rows = []
    for title, take in ROWS.items():
        earlier, later = ([take(pair[moment]) for pair in both] for moment in (0, 1))
        rows.append(
            PairRow(
                title,
                summarize_scores([take(one) for one in then.values()]) if then else None,
                summarize_scores([take(one) for one in now.values()]),
                difference(earlier, later) if both else None,
            )
        )
    if both:
        moved = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) / 2 for pair in both]
        rows.append(
            PairRow("Distance of an answer from before", None, summarize_scores(moved), None)
        )
    return rows


def _pairs(predictions: Sequence[Prediction]) -> Iterator[tuple[object, Likelihoods]]:
    for one in predictions:
        given, *rejected = one.compared or (0.0,)
        for number, worse in enumerate(rejected):
            yield (one.key, one.answers, number), (given, worse)
