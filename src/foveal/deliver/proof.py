"""What comparing a written folder with its run gave, and whether that is enough."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from foveal.deliver.weight_only import WeightFormat
from foveal.evaluate.intervals import Score
from foveal.evaluate.prediction import Scores
from foveal.machine import Precision
from foveal.storage import write_json

FILE = "proof.json"


@dataclass(frozen=True)
class ScoreCheck:
    """A score of the written folder beside the run's interval."""

    value: float
    low: float
    high: float
    count: int
    run: float
    """The run's own score."""

    @property
    def holds(self) -> bool:
        """Whether it lies within."""
        return self.low <= self.value <= self.high  # never true of what is no number


@dataclass(frozen=True)
class Proof:
    """What was compared, and what came out; differences are of logits."""

    dtype: Precision
    data: str
    examples: Sequence[str]
    largest_logit: float
    difference: float
    """To the run's own weights in the same number format, at most."""

    difference_limit: float
    rounding_difference: float
    """To the run's float32 weights, at most."""

    rounding_limit: float | None
    """None: fewer bits may move logits as far as the scores allow."""
    equal_answers: int
    """Greedy, of as many as there are examples' turns."""

    answers: int
    answers_changed_by_rounding: int
    scores: Mapping[str, ScoreCheck]
    scores_note: str | None = None
    """Which scores were not compared, and why."""

    weights: WeightFormat | None = None
    """Number format of the decoder's linear layers, where it is another than `dtype`."""

    four_bit_difference: float | None = None
    """Of the run's 4-bit base to the full-precision one that it was merged onto."""

    def problems(self) -> list[str]:
        """Say what failed, one line each; empty: proven."""
        found = []
        if not self.difference <= self.difference_limit:
            found.append(
                f"logits differ by {self.difference:.2e} from the run's own, "
                f"limit {self.difference_limit:.2e}"
            )
        limit = math.inf if self.rounding_limit is None else self.rounding_limit
        if not self.rounding_difference <= limit:
            found.append(
                f"{self.dtype} moves logits by {self.rounding_difference:.2e}, "
                f"limit {limit:.2e}; --dtype float32 keeps them"
            )
        if self.equal_answers < self.answers:
            found.append(f"{self.answers - self.equal_answers} of {self.answers} answers differ")
        found += [
            f"{name} is {one.value:.3f}, outside the run's [{one.low:.3f}, {one.high:.3f}]"
            for name, one in self.scores.items()
            if not one.holds
        ]
        return found

    def lines(self) -> list[str]:
        """Tell what was measured."""
        form = self.weights or self.dtype
        limit = "no limit" if self.rounding_limit is None else f"limit {self.rounding_limit:.2e}"
        lines = [
            (
                f"logits on {len(self.examples)} examples: at most {self.difference:.2e} from the "
                f"run's own (limit {self.difference_limit:.2e}), "
                f"from float32 {self.rounding_difference:.2e} "
                f"({limit}); largest logit {self.largest_logit:.1f}"
            ),
            (
                f"greedy answers: {self.equal_answers} of {self.answers} equal; "
                f"{self.answers_changed_by_rounding} changed by {form}"
            ),
        ]
        lines += [
            f"{name}: {one.value:.3f}, {one.value - one.run:+.3f} against the run's {one.run:.3f}, "
            f"its interval [{one.low:.3f}, {one.high:.3f}]"
            for name, one in self.scores.items()
        ]
        if self.scores_note:
            lines.append(f"scores: {self.scores_note}")
        if self.four_bit_difference is not None:
            lines.append(
                f"the 4-bit base that it learnt on moves logits by {self.four_bit_difference:.2e} "
                "against this one"
            )
        return lines

    def write(self, folder: Path) -> None:
        """Write proof.json."""
        tree = asdict(self) | {"problems": self.problems()}
        write_json(folder / FILE, tree, indent=2)


def check_scores(found: Scores, expected: Scores) -> dict[str, ScoreCheck]:
    """Put scores of the written folder beside the run's intervals.

    An interval that holds every score there is would prove nothing, and is left out.
    """
    return {
        name: ScoreCheck(found[name].value, *_interval(wanted), found[name].count, wanted.value)
        for name, wanted in expected.items()
        if name in found and not math.isnan(wanted.value) and _can_fail(wanted)
    }


def _interval(wanted: Score) -> tuple[float, float]:
    """Widen an interval of equal answers, and keep it within 0 and 1 as all scores are.

    Equal scores of n answers give the bootstrap no width, yet say little of an answer in 3 / n
    (the rule of three: Hanley and Lippman-Hand 1983, JAMA 249).
    """
    margin = 3 / wanted.count if wanted.low == wanted.high else 0.0
    return max(0.0, wanted.low - margin), min(1.0, wanted.high + margin)


def _can_fail(wanted: Score) -> bool:
    low, high = _interval(wanted)
    return low > 0.0 or high < 1.0


def note_scores(found: Scores, expected: Scores | None) -> str | None:
    """Say which scores could not be compared as they should be; none: all were."""
    if expected is None:
        return "not compared, the recipe names no data.validation"
    notes = [
        f"{name} is not compared, the recipe's evaluation does not give it"
        for name in expected
        if name not in found
    ]
    notes += [
        f"{name} proves nothing, {wanted.count} answers are too few for an interval"
        for name, wanted in expected.items()
        if name in found and wanted.count and not _can_fail(wanted)
    ]
    notes += [
        f"{name} has {found[name].count} answers, the run's had {wanted.count}"
        for name, wanted in expected.items()
        if name in found and found[name].count != wanted.count
    ]
    return "; ".join(notes) or None
