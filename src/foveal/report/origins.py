"""A run -> what was run: its settings beside its base's, its examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from foveal.config import Recipe, as_typed
from foveal.report.run_folder import Run, settings_beside_defaults, settings_of


@dataclass(frozen=True)
class Setting:
    """One setting of a run."""

    name: str
    value: str
    otherwise: str = ""
    """Its value in the recipe that the run's was built on."""


@dataclass(frozen=True)
class DataOrigin:
    """A file of examples that a run used."""

    role: str
    path: Path
    fingerprint: str
    """Start of its SHA-256 as it is now; empty where it is not at hand."""

    size_bytes: int


@dataclass(frozen=True)
class Origins:
    """What was run, and on what."""

    base: Path | None
    """The recipe that the run's own was built on."""

    differing: Sequence[Setting]
    """Settings that differ from the base."""

    settings: Sequence[Setting]
    """Settings that are not at their default."""

    examples: Mapping[str, str]
    """Role -> in words, fingerprint and counts as they were when the run began."""

    sources: Sequence[DataOrigin]


def setup_of(run: Run) -> Origins:
    """Gather what was run."""
    recipe, examples = run.recipe, {role: _in_words(facts) for role, facts in run.data.items()}
    if recipe is None:
        return Origins(None, [], [], examples, [])
    values = settings_of(recipe)
    below = recipe.base.otherwise if recipe.base else {}
    return Origins(
        recipe.base.file if recipe.base else None,
        [
            Setting(name, as_typed(values[name]), as_typed(below[name]))
            for name in values
            if name in below
        ],
        [
            Setting(name, as_typed(value))
            for name, value in settings_beside_defaults(recipe).items()
        ],
        examples,
        _sources(recipe),
    )


def _in_words(facts: Mapping[str, object]) -> str:
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
        return DataOrigin(
            role, path, file_digest(file, "sha256").hexdigest()[:12], path.stat().st_size
        )
