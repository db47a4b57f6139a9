"""Prediction: one turn with the model's answer; predictions.jsonl in and out, scores.json."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from foveal.data.example import Example
from foveal.errors import DataError
from foveal.evaluate.intervals import DRAWS, Score, macro_auroc, summarize_scores
from foveal.evaluate.metrics import METRICS, find_metrics, plain
from foveal.storage import RepeatedKeyError, unique_keys, write_json, written_whole

PREFERRED = "preferred"
"""Score of answers that others are rejected for: the share of these that are less likely."""

Scores = dict[str, Score]
"""Metric -> score over all predictions."""


@dataclass(frozen=True)
class Prediction:
    """What a model answered to one turn of one example."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", ser_json_inf_nan="constants"
    )

    id: str
    """Of the example."""

    prediction: str
    """The answer, as generated."""

    turn: int = 0
    """Which turn of the example, from 0."""

    answers: tuple[str, ...] = ()
    """What would have been right."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """Metric -> score of this answer, 0 to 1."""

    choice_scores: Mapping[str, float] | None = None
    """Label -> log-likelihood, in nats, where the answer is one of a closed set."""

    compared: tuple[float, ...] | None = None
    """Log-probability of the given answer and of each that is rejected for it, nats; none: nothing
    is rejected."""

    choice_probabilities: Mapping[str, float] = field(default_factory=dict)
    """Label -> probability, as if it had to be one of the labels, the likeliest first; empty for
    open answers."""

    def __post_init__(self) -> None:
        """Rank the labels by their log-likelihoods."""
        if self.choice_scores:
            object.__setattr__(self, "choice_probabilities", _softmax(self.choice_scores))

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others."""
        return self.id, self.turn

    def chances(self, labels: Sequence[str]) -> list[float]:
        """List the probabilities of labels, in their order."""
        return [self.choice_probabilities[label] for label in labels]

    @property
    def beaten(self) -> list[bool]:
        """Tell of each rejected answer whether it is less likely than the given one."""
        given, *rejected = self.compared or (math.nan,)
        return [given > one for one in rejected]

    def score(self, metric: str) -> float | None:
        """Find a score of the answer, as written down or worked out; none: neither is possible."""
        if metric in self.scores or metric not in METRICS:
            return self.scores.get(metric)
        return METRICS[metric](self.prediction, self.answers)

    def scored(self, metrics: Sequence[str]) -> "Prediction":
        """Add the scores of the answer to those it has."""
        found = find_metrics(metrics)
        new = {name: found[name](self.prediction, self.answers) for name in found}
        if self.compared:
            new[PREFERRED] = sum(self.beaten) / len(self.beaten)
        return replace(self, scores={**self.scores, **new})


def _softmax(scores: Mapping[str, float]) -> dict[str, float]:
    ranked = sorted(scores, key=lambda label: -scores[label])
    shares = {label: math.exp(scores[label] - scores[ranked[0]]) for label in ranked}
    total = sum(shares.values())
    return {label: share / total for label, share in shares.items()}


_BORDER = TypeAdapter(Prediction)


def read_predictions(path: Path, torn: bool = False) -> list[Prediction]:
    """Read predictions.jsonl; of two lines for one turn the later counts.

    Args:
        path: of the file.
        torn: pass over a last line that a kill cut short, as in a file of our own: its answer
            will be made again.

    Raises:
        DataError: the file cannot be opened, or another line is no prediction.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a predictions.jsonl") from error
    found: dict[tuple[str, int], Prediction] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prediction = _BORDER.validate_json(line)
            json.loads(line, object_pairs_hook=unique_keys)
        except RepeatedKeyError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        except ValidationError as error:
            if torn and number == len(lines):  # every whole line ends in a line break
                break
            raise DataError(
                f"{path}:{number}: {_explain(error)}; write one answer a line, "
                '{"id": ..., "prediction": ...}'
            ) from None
        found[prediction.key] = prediction
    return list(found.values())


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f'"{where}": {first["msg"]}' if where else str(first["msg"])


def append_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Add lines to predictions.jsonl, whole lines only; a torn last line is cut off first."""
    text = b"".join(map(_line, predictions))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                _mend_end(file, path)
        file.write(text)


def _mend_end(file: BinaryIO, path: Path) -> None:
    whole, line_break, last = path.read_bytes().rpartition(b"\n")
    try:
        _BORDER.validate_json(last)
        file.write(b"\n")
    except ValidationError:
        file.truncate(len(whole + line_break))


def _line(prediction: Prediction) -> bytes:
    """Write a prediction as a line, which says nothing of pairs where there are none."""
    unsaid = None if prediction.compared else {"compared"}
    return _BORDER.dump_json(prediction, exclude=unsaid) + b"\n"


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions.jsonl whole or not at all."""
    with written_whole(path) as beside, beside.open("wb") as file:
        file.writelines(map(_line, predictions))


def accepted_answers(examples: Iterable[Example]) -> dict[tuple[str, int], tuple[str, ...]]:
    """(id, turn) of every turn that is to be answered, in order -> its accepted answers."""
    return {
        (example.id, place): turn.accepted
        for example in examples
        for place, turn in enumerate(example.turns)
    }


def with_answers(
    predictions: Iterable[Prediction], examples: Iterable[Example]
) -> list[Prediction]:
    """Give predictions that were made elsewhere the accepted answers of the data.

    Raises:
        DataError: a prediction speaks of a turn that the data does not have.
    """
    accepted = accepted_answers(examples)
    answered = []
    for prediction in predictions:
        if prediction.key not in accepted:
            raise DataError(
                f"prediction for turn {prediction.turn} of {prediction.id!r}: "
                "the data has no such turn; give the file that was answered"
            )
        answered.append(replace(prediction, answers=accepted[prediction.key]))
    return answered


def score_predictions(
    predictions: Sequence[Prediction],
    metrics: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> Scores:
    """Score answers under each metric; closed ones under `auroc`, compared ones as `preferred` too.

    Args:
        predictions: one a turn.
        metrics: names out of METRICS.
        draws: samples behind each interval.
        seed: start of the samples.

    Raises:
        ConfigError: there is no metric of that name.
    """
    scores = {
        name: summarize_scores(
            np.array([one.score(name) for one in predictions], float), draws, seed
        )
        for name in find_metrics(metrics)
    }
    beaten = [one for prediction in predictions for one in prediction.beaten]
    if beaten:
        scores[PREFERRED] = summarize_scores(np.asarray(beaten, float), draws, seed)
    chosen = [one for one in predictions if one.choice_scores]
    labels = common_labels(chosen)
    closed = [(right_label(one, labels), one) for one in chosen]
    chances = [one.chances(labels) for right, one in closed if right is not None]
    if chances:
        truth = [right for right, _ in closed if right is not None]
        scores["auroc"] = macro_auroc(chances, truth, draws, seed)
    return scores


def common_labels(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """List the labels that every answer was chosen from; empty where they differ or are open."""
    offers = {tuple(one.choice_scores or ()) for one in predictions}
    return offers.pop() if len(offers) == 1 else ()


def right_label(prediction: Prediction, labels: Sequence[str]) -> int | None:
    """Find the place of the accepted label; none where no label is accepted."""
    accepted = set(map(plain, prediction.answers))
    return next((place for place, label in enumerate(labels) if plain(label) in accepted), None)


def write_scores(path: Path, scores: Mapping[str, Score]) -> None:
    """Write scores.json whole or not at all; a score without examples is null."""
    tree = {
        name: {key: None if math.isnan(value) else value for key, value in asdict(found).items()}
        for name, found in scores.items()
    }
    write_json(path, tree, indent=2)


def read_scores(path: Path) -> Scores:
    """Read scores.json.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {name: _read_score(found) for name, found in tree.items()}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a scores.json") from error
    except (ValueError, TypeError, AttributeError, KeyError):
        raise DataError(f"{path}: not scores; evaluate again to write it anew") from None


def _read_score(found: Mapping[str, float | None]) -> Score:
    value, low, high = (
        math.nan if found[key] is None else float(found[key] or 0)
        for key in ("value", "low", "high")
    )
    return Score(value, low, high, int(found["count"] or 0))
