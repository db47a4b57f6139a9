"""A run folder on disk -> what it holds: recipe, measures, evaluations, incidents, machine."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.config import Recipe, load_recipe, setting_names
from foveal.errors import DataError, RunError
from foveal.evaluate.intervals import Score
from foveal.evaluate.kept import WEIGHTS, WORDS, differing, is_of_run, read_what
from foveal.evaluate.metrics import METRICS
from foveal.evaluate.prediction import (
    Prediction,
    Scores,
    read_predictions,
    read_scores,
    score_predictions,
)

Numbers = NDArray[np.float64]

NOTHING_LEARNT = "No weight has moved: this run has learnt nothing, and its scores are the base's."


@dataclass(frozen=True)
class Evaluation:
    """The answers of one moment of a run, and their scores."""

    name: str
    """`before`, `after`, or `step-N`."""

    predictions: tuple[Prediction, ...]
    scores: Scores
    what: Mapping[str, object] = field(default_factory=dict)
    """What was asked, as it was written down; see `Place`."""

    is_whole: bool = True

    def differs_from(self, other: "Evaluation") -> list[str]:
        """List in words what else was asked than in another evaluation of the run."""
        others = [name for name in differing(self.what, other.what) if name != WORDS[WEIGHTS]]
        mine, theirs = (
            {one.key: one.answers for one in each.predictions} for each in (self, other)
        )
        both = mine.keys() & theirs.keys()
        same = mine.keys() == theirs.keys() or not (self.is_whole and other.is_whole)
        if not same or any(mine[key] != theirs[key] for key in both):
            others.append("data")
        return list(dict.fromkeys(others))

    def score(self, metric: str) -> Score | None:
        """Find a score, as written down or worked out from the answers; none: neither is there."""
        if metric in self.scores or metric not in METRICS or not self.predictions:
            return self.scores.get(metric)
        return score_predictions(self.predictions, [metric])[metric]

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.name.replace("-", " ").capitalize()


@dataclass(frozen=True)
class Curves:
    """What a run wrote down at each step, in order, each step once."""

    steps: Numbers  # (steps,)
    columns: dict[str, Numbers]
    """Name -> (steps,); not a number where a line lacks it."""

    seconds: float
    """Time of all steps, those that a resumed run did again included."""

    repeated_steps: int
    """Steps done again after a resume."""

    def total(self, name: str) -> float:
        """Sum a column over the run; 0 where it was never written."""
        return float(np.nansum(self.columns.get(name, np.zeros(1))))

    def highest(self, name: str) -> float | None:
        """Find the highest value of a column; none where it was never written."""
        values = self.columns.get(name, np.empty(0))
        known = values[np.isfinite(values)]
        return float(known.max()) if known.size else None


@dataclass(frozen=True)
class Run:
    """All that a run folder holds; what is missing is none or empty."""

    folder: Path
    recipe: Recipe | None
    recipe_text: str
    measures: Curves | None
    evaluations: Mapping[str, Evaluation]
    """By name, in the order of their moments."""

    incidents: Sequence[Mapping[str, object]]
    machine: Mapping[str, object]
    data: Mapping[str, Mapping[str, object]]
    """Role -> fingerprint and counts of the examples, as the run found them."""

    remarks: Sequence[str] = ()
    """What a reader must know before the numbers."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def steps(self) -> list[tuple[int, Evaluation]]:
        """Evaluations along the way, by step."""
        return [
            (int(_moment(name)), one)
            for name, one in self.evaluations.items()
            if name.startswith("step-")
        ]

    @property
    def latest(self) -> Evaluation | None:
        """The last evaluation there is."""
        return next(reversed([*self.evaluations.values()]), None)

    @property
    def before(self) -> Evaluation | None:
        """The evaluation before the first step, where there is a later one to compare it with."""
        before = self.evaluations.get("before")
        return before if before is not self.latest else None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: there is no such folder, or nothing of a run in it.
        ConfigError, DataError: a file in it is broken.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; give the folder of a run")
    recipe = folder / "recipe.yaml"
    known = ("recipe.yaml", "metrics.jsonl", "evaluation")
    if not any((folder / name).exists() for name in known):
        raise RunError(f"{folder}: no run, it has none of {', '.join(known)}")
    settings = load_recipe(recipe) if recipe.is_file() else None
    metrics = settings.evaluate.metrics if settings else ("accuracy", "anls")
    read = [_read_evaluation(one, metrics) for one in (folder / "evaluation").glob("*")]
    found = sorted((one for one in read if one), key=lambda one: _moment(one.name))
    evaluations, remarks = _asked_alike(found)
    incidents = read_objects(folder / "incidents.jsonl")
    remarks += _early_end(folder, settings, evaluations)
    remarks += [NOTHING_LEARNT for one in incidents if one.get("what") == "no weight moved"]
    return Run(
        folder=folder,
        recipe=settings,
        recipe_text=recipe.read_text(encoding="utf-8") if settings else "",
        measures=read_measures(folder / "metrics.jsonl"),
        evaluations=evaluations,
        incidents=incidents,
        machine=_read_object(folder / "machine.json"),
        data={
            role: facts
            for role, facts in _read_object(folder / "data.json").items()
            if isinstance(facts, dict)
        },
        remarks=remarks,
    )


def _early_end(
    folder: Path, settings: Recipe | None, evaluations: Mapping[str, Evaluation]
) -> list[str]:
    steps = [int(_moment(name)) for name in evaluations if name.startswith("step-")]
    if not (settings and steps and settings.train.best_metric and settings.train.stop_after_worse):
        return []
    from foveal.train.checkpoint import explain_stall  # and torch, which few pages need

    patience = settings.train.stop_after_worse
    reason = explain_stall(folder, settings.train.best_metric, patience, steps[-1])
    return [f"{reason}."] if reason else []


def _read_evaluation(folder: Path, metrics: Sequence[str]) -> Evaluation | None:
    path = folder / "predictions.jsonl"
    if not is_of_run(folder.name) or not path.is_file():
        return None
    predictions = read_predictions(path, torn=True)
    scores = folder / "scores.json"
    return Evaluation(
        folder.name,
        tuple(predictions),
        read_scores(scores) if scores.is_file() else score_predictions(predictions, metrics),
        read_what(folder),
        scores.is_file(),
    )


def _asked_alike(found: Sequence[Evaluation]) -> tuple[dict[str, Evaluation], list[str]]:
    """Keep the evaluations that asked what the latest did; of the others, say what they did."""
    alike, remarks = {}, []
    for one in found:
        latest = found[-1]
        others = one.differs_from(latest)
        if not others:
            alike[one.name] = one
        else:
            remarks.append(
                f"The evaluation {one.name} asked something else than {latest.name} "
                f"({', '.join(others)} changed), so it is not shown beside it."
            )
    return alike, remarks


def _moment(name: str) -> float:
    """Tell when in its run an evaluation of a name is: its step, or before or after all."""
    ends = {"before": -math.inf, "after": math.inf}
    return ends[name] if name in ends else int(name.removeprefix("step-"))


def _read_object(path: Path) -> dict[str, object]:
    return _as_object(path.read_bytes(), f"{path}") if path.is_file() else {}


def _as_object(text: bytes, place: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}); mend or remove it") from None
    if not isinstance(found, dict):
        raise DataError(f"{place}: not a JSON object; mend or remove it")
    return found


def read_measures(path: Path) -> Curves | None:
    """Read metrics.jsonl; none where there is no file or no line. The later line of a step counts.

    Raises:
        DataError: a line is no measure of a step.
    """
    lines = read_objects(path)
    found: dict[int, dict[str, object]] = {}
    for number, line in enumerate(lines, start=1):
        step = line.get("step")
        if not isinstance(step, int):
            raise DataError(f"{path}: measure {number} names no step; mend or remove the line")
        found[step] = line
    if not found:
        return None
    steps = sorted(found)
    names = {name for line in lines for name in line} - {"step"}
    return Curves(
        steps=np.array(steps, float),
        columns={name: _column([found[step] for step in steps], name) for name in names},
        seconds=float(np.nansum(_column(lines, "seconds"))),
        repeated_steps=len(lines) - len(steps),
    )


def _column(lines: Sequence[Mapping[str, object]], name: str) -> Numbers:
    values = (line.get(name) for line in lines)
    return np.array([value if isinstance(value, int | float) else math.nan for value in values])


def read_objects(path: Path) -> list[dict[str, object]]:
    """Read JSON objects, one a line; a last line that a kill cut short is left out.

    Returns:
        One a line; none where there is no file.

    Raises:
        DataError: another line is no JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found += [_as_object(line, f"{path}:{number}")] if line.strip() else []
        except DataError:
            if number < len(lines):  # every whole line ends in a line break
                raise
    return found


def settings_beside_defaults(recipe: Recipe) -> dict[str, object]:
    """List the settings that are not at their default, and the model and the run."""
    defaults = settings_of(Recipe(model=recipe.model, run=recipe.run))
    return {
        name: value
        for name, value in settings_of(recipe).items()
        if name in ("model", "run") or value != defaults[name]
    }


def settings_of(recipe: Recipe) -> dict[str, object]:
    """List every setting and its value, dots between the names.

    Not among them: published scores, which stand beside the scores, and what a recipe was built on.
    """
    names = (name for name in setting_names(Recipe) if name not in ("base", "published"))
    return {name: attrgetter(name)(recipe) for name in names}
