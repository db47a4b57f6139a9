"""Several run folders -> one page: their scores, what was set differently, how they learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from foveal.config import as_typed
from foveal.errors import RunError
from foveal.evaluate.intervals import Difference, Score
from foveal.report.charts import COMPARED, loss_comparison, progress_comparison
from foveal.report.cost import cost
from foveal.report.html import write_page
from foveal.report.plots import SERIES
from foveal.report.run_folder import Run, read_run, settings_of
from foveal.report.scores import paired_difference


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
        rows=_rows(found),
        settings=_differing(found),
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


def _rows(runs: Sequence[Run]) -> list[ComparedMetric]:
    latest = [run.latest for run in runs]
    metrics = dict.fromkeys(metric for one in latest if one for metric in one.scores)
    first = latest[0]
    return [
        ComparedMetric(
            metric,
            [one.scores.get(metric) if one else None for one in latest],
            [paired_difference(first, one, metric) if first and one else None for one in latest],
        )
        for metric in metrics
    ]


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
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
