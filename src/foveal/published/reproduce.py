"""A row of the published tables -> its data, its run, and our score beside the published one."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from rich.console import Console

from foveal.config import Recipe, load_recipe, quoted
from foveal.data.checking.check import check_file
from foveal.errors import ConfigError
from foveal.evaluate.prediction import Scores
from foveal.published.tasks import TASKS, prepare

RECIPES = Path(__file__).parents[1] / "recipes"
"""Bundled recipes: one file a task, and below it one a row of its table."""


def find_row(name: str) -> Path:
    """Find the recipe of a row, such as `docvqa/lora`.

    Raises:
        ConfigError: there is no row of that name.
    """
    rows = [row_name(path) for path in list_rows()]
    if name not in rows:
        close = get_close_matches(name, rows, n=1)
        hint = f"did you mean {close[0]}?" if close else "`foveal recipes` lists them"
        raise ConfigError(f"{name}: no such row; {hint}")
    return RECIPES / f"{name}.yaml"


def list_rows() -> list[Path]:
    """List the recipes of all rows."""
    return [path for task in TASKS for path in sorted((RECIPES / task).glob("*.yaml"))]


def list_starts() -> list[Path]:
    """List the recipes that other families may start from: of no published row."""
    rows = set(list_rows())
    return [path for path in sorted(RECIPES.glob("*/*.yaml")) if path not in rows]


def row_name(path: Path) -> str:
    """`.../recipes/docvqa/lora.yaml` -> docvqa/lora."""
    return path.relative_to(RECIPES).with_suffix("").as_posix()


def published_scores(recipe: Recipe) -> dict[str, float]:
    """Metric -> published score, 0 to 1."""
    return {name: x for name, x in (recipe.published or {}).items() if isinstance(x, float)}


def reproduce_row(
    name: str, source: Path | None, out: Path, overrides: Sequence[str], console: Console
) -> list[str]:
    """Convert, check, evaluate, train, evaluate; returns the lines that compare the scores.

    Args:
        name: a row, such as `docvqa/lora`.
        source: the data set as the hub has it; none: the hub, or its cache.
        out: the run's folder, with the converted data in `data`.
        overrides: settings of the recipe, `key=value`.
        console: to speak to.

    Raises:
        UserError: something to mend, as in `foveal convert` and `foveal train`.
    """
    for override in overrides:
        if override.partition("=")[0] in {"run", "data.train", "data.validation"}:
            raise ConfigError(f"{override}: give --source and --out, or use foveal train")
    row = find_row(name)
    load_recipe(row, tuple(overrides))  # a typo is told before data are fetched
    rank = int(os.environ.get("RANK", "0"))
    train, validation = prepare(name.partition("/")[0], source, out / "data", rank=rank)
    if rank == 0:
        tell_problems(train, validation, console)
    recipe = load_recipe(
        row, (*overrides, *quoted(run=out), *quoted("data.", train=train, validation=validation))
    )
    from foveal.run import TrainingRun

    outcome = TrainingRun(recipe, console).go()
    if outcome.stopped:
        return [f"stopped at step {outcome.stopped.step}; the same command goes on from there"]
    lines = compare_with_published(recipe, outcome.after or {}, overrides)
    return [f"report: {outcome.report}", *lines] if rank == 0 else []


def compare_with_published(
    recipe: Recipe, ours: Scores, overrides: Sequence[str] = ()
) -> list[str]:
    """Set our scores beside the published ones."""
    source = (recipe.published or {}).get("source", "")
    changed = f", with {' '.join(overrides)}" if overrides else ""
    published = published_scores(recipe)
    if not published:
        lines = dict.fromkeys(ours, "none published")
    else:
        lines = {name: f"published {value:.4f} ({source})" for name, value in published.items()}
    return [
        f"{name}: ours {ours[name].value:.4f} "
        f"[{ours[name].low:.4f}, {ours[name].high:.4f}]{changed} - {beside}"
        for name, beside in lines.items()
        if name in ours
    ]


def tell_problems(train: Path, validation: Path, console: Console, show: int = 3) -> None:
    """Say what is wrong with the data; what a run cannot bear, the run itself will refuse."""
    for file, other in ((train, (validation,)), (validation, ())):
        problems = check_file(file, None, decode=False, other_splits=other)
        for problem in islice(problems, show):
            console.print(
                f"{file}:{problem.line}: {problem.message}", highlight=False, markup=False
            )
        for _ in problems:
            pass
        found = problems.summary
        console.print(
            f"{file}: {found.examples:,} examples, problems: {found.problems:,}", highlight=False
        )
