"""A folder of answers -> those that still stand; what was answered otherwise is set aside."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from foveal.config import EvaluateSettings
from foveal.data.dataset import Dataset
from foveal.data.example import Example
from foveal.data.images.archives import state_of
from foveal.data.images.media import image_identity
from foveal.errors import DataError
from foveal.evaluate.prediction import (
    Prediction,
    Scores,
    read_predictions,
    with_answers,
    write_predictions,
    write_scores,
)
from foveal.storage import read_object, write_text

PREDICTIONS, SCORES, WHAT = "predictions.jsonl", "scores.json", "evaluation.json"
RANK_PREDICTIONS = "predictions.rank-{}.jsonl"
"""What the other processes append to, until all is put together."""

WEIGHTS = "model"
WORDS = {WEIGHTS: "weights", "questions": "data"}
"""What people call some of what is written down."""


def describe_question(
    examples: Sequence[Example], dataset: Dataset, settings: EvaluateSettings, precision: str
) -> dict[str, object]:
    """Name all that answers hang on, but the weights.

    Args:
        examples: that are asked about.
        dataset: these and perhaps others behind them, encoded.
        settings: how answers are made.
        precision: number format of the passes.
    """
    digest = blake2b(digest_size=16)
    for number, example in enumerate(examples):
        digest.update(example.model_dump_json().encode() + b"\n")
        for image in dataset.image_numbers(number):
            digest.update(_content(Path(dataset.images[image].path)).encode())
    answering = settings.model_dump(mode="json", include={"answer", "choices", "max_new_tokens"})
    return {
        "data": dataset.fingerprint,
        "questions": digest.hexdigest(),
        "precision": precision,
        **answering,
    }


def _content(path: Path) -> str:
    try:
        return _identity(path, tuple(state_of(path)))
    except (OSError, DataError):  # whoever opens it says so
        return "gone"


@cache
def _identity(path: Path, _state: tuple[int, ...]) -> str:
    """Read an image once for all evaluations of a run, unless it changes."""
    return image_identity(path)


@dataclass(frozen=True)
class Place:
    """Where an evaluation is written."""

    folder: Path

    def begin(self, what: Mapping[str, object]) -> list[str]:
        """Keep the answers that are of this, and no others.

        Args:
            what: all that answers hang on.

        Returns:
            What was another, where there were answers to something else.
        """
        found = read_what(self.folder)
        if found == json.loads(json.dumps(what)):
            return []
        old = self._files()
        for file in (self.folder / SCORES, *old):
            file.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(what, indent=1)
        write_text(self.folder / WHAT, text)
        return differing(found, what) if old else []

    def _files(self) -> list[Path]:
        others = self.folder.glob(RANK_PREDICTIONS.format("*"))
        return [file for file in (self.folder / PREDICTIONS, *others) if file.is_file()]

    def own_file(self, rank: int) -> Path:
        """Name the file that a process appends to."""
        return self.folder / (PREDICTIONS if rank == 0 else RANK_PREDICTIONS.format(rank))

    def read(self, rank: int, examples: Sequence[Example]) -> list[Prediction]:
        """Read what was answered before: all of it in the first process, in others their own."""
        own = self.own_file(rank)
        files = self._files() if rank == 0 else [own] if own.is_file() else []
        found = [one for file in files for one in read_predictions(file, torn=True)]
        return with_answers(found, examples)

    def end(self, predictions: Sequence[Prediction], scores: Scores) -> None:
        """Write down the whole."""
        write_predictions(self.folder / PREDICTIONS, predictions)
        write_scores(self.folder / SCORES, scores)
        for file in self.folder.glob(RANK_PREDICTIONS.format("*")):
            file.unlink()


def read_what(folder: Path) -> dict[str, object]:
    """Read what an evaluation is of; empty where it does not say."""
    return read_object(folder / WHAT)


def differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """List in words what differs of what both say."""
    names = [name for name in other if name in one and one[name] != other[name]]
    return list(dict.fromkeys(WORDS.get(name, name) for name in names))


def set_aside_others(evaluations: Path, asked: Mapping[str, object]) -> str:
    """Rename the folders of a run's evaluations that asked something else.

    Args:
        evaluations: the folder that they are in.
        asked: what is asked now; whose weights answer is not looked at.

    Returns:
        What is to be said of it; nothing where all asked the same.
    """
    moved, reasons = [], dict[str, None]()
    wanted = {name: value for name, value in asked.items() if name != WEIGHTS}
    for folder in sorted(evaluations.glob("*")):
        others = differing(read_what(folder), wanted) if is_of_run(folder.name) else []
        if others:
            reasons |= dict.fromkeys(others)
            moved.append(_set_aside(folder))
    if not moved:
        return ""
    return (
        f"{', '.join(name for name in moved)} in {evaluations} answered another question "
        f"({', '.join(reasons)} changed): kept there as *.other-N, out of the report; made again "
        "where the weights are still at hand"
    )


def is_of_run(name: str) -> bool:
    """Tell whether an evaluation of this name is a moment of its run."""
    return re.fullmatch(r"before|after|step-\d+", name) is not None


def _set_aside(folder: Path) -> str:
    number = 1
    while (other := folder.with_name(f"{folder.name}.other-{number}")).exists():
        number += 1
    folder.rename(other)
    return folder.name
