"""Run folders -> pages to read: how a run went and what it got wrong, or several side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from itertools import cycle
from pathlib import Path

from foveal.config import Columns, Recipe, as_typed, flatten
from foveal.data.convert.unpack import unpacked
from foveal.data.example import Example, read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.objects import image_base
from foveal.errors import RunError, UserError
from foveal.evaluate.intervals import Difference, Score
from foveal.report.charts import (
    COMPARED,
    calibration_charts,
    loss_comparison,
    progress_charts,
    progress_comparison,
    training_charts,
)
from foveal.report.cost import cost
from foveal.report.gallery import choose_cards, match
from foveal.report.html import write_page
from foveal.report.plots import SERIES
from foveal.report.run_folder import (
    Evaluation,
    Run,
    read_run,
    settings_beside_defaults,
    settings_of,
)
from foveal.report.scores import confusions, pair_rows, paired_difference, score_rows

INCIDENTS = 50
"""Incidents that are listed; the rest are counted."""


@dataclass(frozen=True)
class DataOrigin:
    """A file of examples that a run used."""

    role: str
    path: Path
    fingerprint: str
    """Start of its SHA-256 as it is now; empty where it is not at hand."""

    size_bytes: int


@dataclass(frozen=True)
class Column:
    """One run."""

    name: str
    cost: Mapping[str, str]
    colour: int
    """Number of its colour, from 1."""


@dataclass(frozen=True)
class ComparedMetric:
    """One metric over all runs."""

    metric: str
    scores: Sequence[Score | None]
    differences: Sequence[Difference | None]
    """To the first run, answer by answer."""


def write_report(
    run: Path,
    *,
    data: Path | None = None,
    images: Path | None = None,
    published: Mapping[str, float | str] | None = None,
    out: Path | None = None,
) -> Path:
    """Write one self-contained page about a run.

    Args:
        run: folder of the run.
        data: examples behind its predictions; by default the recipe's `data.validation`.
        images: folder that image paths start from; by default the recipe's `data.images`.
        published: metric -> published score, 0 to 1, to stand beside ours, and their `source`; by
            default the recipe's.
        out: the page; by default `report.html` in the run folder.

    Returns:
        The page.

    Raises:
        RunError: there is no run in the folder.
        ConfigError, DataError: a file in it is broken.
    """
    found = read_run(run)
    latest, measures = found.latest, found.measures
    recipe = found.recipe or Recipe(model="", run=run)  # of which nothing is known but defaults
    before = found.before.predictions if found.before else ()
    after = latest.predictions if latest else ()
    if published is None:
        published = recipe.published or {}
    numbers = {name: value for name, value in published.items() if not isinstance(value, str)}
    data, images = data or recipe.data.validation, image_base(recipe.data, images)
    examples, notes = list[Example](), list[str]()
    if latest:
        data, examples, notes = _examples(data, run / ".cache", recipe.data.columns)
    pairs = match(after, before, examples)
    metric = _main_metric(latest)
    return write_page(
        out or run / "report.html",
        "report.html",
        run=found,
        notes=notes,
        rows=score_rows(found.before, latest, numbers),
        source=str(published.get("source", "")),
        unmeasured={
            name: value for name, value in numbers.items() if latest and name not in latest.scores
        },
        pair_rows=pair_rows(before, after),
        chosen=sum(bool(one.choice_scores) for one in after),
        charts=training_charts(measures, found.machine) if measures else [],
        score_charts=[*progress_charts(found, metric), *calibration_charts(found)],
        confusions=confusions(found, pairs),
        gallery=choose_cards(
            pairs,
            lambda one: one.score(metric) or 0.0,
            ImageFolder(data, images) if data and examples else None,
            unit=recipe.data.boxes,
        ),
        incidents=found.incidents[:INCIDENTS],
        incident_columns=list(dict.fromkeys(name for one in found.incidents for name in one)),
        cost=cost(measures, found.machine) if measures else {},
        base=recipe.base and recipe.base.file,
        differing=_differing(recipe),
        settings=_in_words(settings_beside_defaults(recipe)) if found.recipe else {},
        examples={role: _counts(facts) for role, facts in found.data.items()},
        sources=_sources(recipe),
    )


def _main_metric(latest: Evaluation | None) -> str:
    """Find the first metric that scores each answer by itself; AUROC, for one, does not."""
    if latest is None:
        return "accuracy"
    known = (
        metric
        for metric in latest.scores
        if all(one.score(metric) is not None for one in latest.predictions)
    )
    return next(known, "accuracy")


def _examples(
    data: Path | None, cache: Path, columns: Columns
) -> tuple[Path | None, list[Example], list[str]]:
    """Find the file of the examples, those in it, and what to say where there are none."""
    if data is None:
        none = "The recipe names no validation file, so questions and pictures are missing."
        return None, [], [none]
    try:
        file = unpacked(data, cache, columns)
        return file, list(read_examples(file)), []
    except UserError as error:
        return data, [], [f"Questions and pictures are missing. {error}"]


def _in_words(settings: Mapping[str, object]) -> dict[str, str]:
    return {name: as_typed(value) for name, value in settings.items()}


def _differing(recipe: Recipe) -> list[tuple[str, str, str]]:
    """List (setting, its value in the recipe that the run's was built on, its value)."""
    below, now = recipe.base.otherwise if recipe.base else {}, flatten(settings_of(recipe))
    # Also what the other recipe alone says, inside a setting that is a mapping.
    names = [*now, *(name for name in below if name not in now)]
    return [
        (name, as_typed(below[name]), as_typed(now.get(name)))
        for name in names
        if name in below and not name.startswith("published")
    ]


def _counts(facts: Mapping[str, object]) -> str:
    counts = [f"{value:,} {name}" for name, value in facts.items() if isinstance(value, int)]
    others = [f"{name} {value}" for name, value in facts.items() if not isinstance(value, int)]
    return ", ".join([*counts, *others])


def _sources(recipe: Recipe) -> list[DataOrigin]:
    paths = [("Training", file.path) for file in recipe.data.train_files]
    if recipe.data.validation:
        paths.append(("Validation", recipe.data.validation))
    return [_source(role, path) for role, path in paths]


def _source(role: str, path: Path) -> DataOrigin:
    if not path.is_file():
        return DataOrigin(role, path, "", 0)
    with path.open("rb") as file:
        fingerprint = file_digest(file, "sha256").hexdigest()[:12]
    return DataOrigin(role, path, fingerprint, path.stat().st_size)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained page that sets runs side by side, against the first of them.

    Args:
        runs: folders of two runs or more.
        out: the page.

    Raises:
        RunError: fewer than two runs, or a folder that holds none.
        ConfigError, DataError: a file in one of them is broken.
    """
    if len(runs) < 2:
        raise RunError("a comparison needs two runs or more; give their folders")
    found = [read_run(run) for run in runs]
    columns = [
        Column(
            name,
            cost(run.measures, run.machine) if run.measures else {},
            SERIES.index(colour) + 1,
        )
        for name, run, colour in zip(_names(found), found, cycle(COMPARED), strict=False)
    ]
    names = [column.name for column in columns]
    return write_page(
        out,
        "comparison.html",
        columns=columns,
        rows=_compared_rows(found),
        settings=_differing_settings(found),
        charts=[*loss_comparison(found, names), *progress_comparison(found, names)],
        cost_names=list(dict.fromkeys(name for column in columns for name in column.cost)),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """Name runs by their folders, with as much of the path as tells them apart."""
    paths = [run.folder.resolve() for run in runs]
    deepest = max(len(path.parts) for path in paths)
    for depth in range(1, deepest + 1):
        names = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _compared_rows(runs: Sequence[Run]) -> list[ComparedMetric]:
    latest = [run.latest for run in runs]
    metrics = dict.fromkeys(metric for one in latest if one for metric in one.scores)
    first = latest[0]
    return [
        ComparedMetric(
            metric,
            [one.score(metric) if one else None for one in latest],
            [paired_difference(first, one, metric) if first and one else None for one in latest],
        )
        for metric in metrics
    ]


def _differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    settings = [settings_of(run.recipe) if run.recipe else {} for run in runs]
    names = dict.fromkeys(name for one in settings for name in one if name != "run")
    values = {
        name: [as_typed(one[name]) if name in one else "not known" for one in settings]
        for name in names
    }
    differ = {name: row for name, row in values.items() if any(one != row[0] for one in row)}
    return differ | _differing_data(runs)


def _differing_data(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Tell data apart by what was in them: files of one name may hold others, by now."""
    found = {}
    for role in dict.fromkeys(role for run in runs for role in run.data):
        facts = [run.data.get(role, {}) for run in runs]
        if len({one["fingerprint"] for one in facts if "fingerprint" in one}) > 1:
            found[f"{role} data"] = [
                f"{one.get('examples')} examples, {str(one.get('fingerprint'))[:8]}"
                if one
                else "not known"
                for one in facts
            ]
    return found
