"""A run folder, a model folder or a hub name -> where its model lies, and how it cuts pictures."""

from pathlib import Path

from foveal.config import DataSettings, Recipe, load_recipe
from foveal.errors import ModelError
from foveal.machine import Precision
from foveal.models.hub.image_settings import ImageBudget

ADAPTER_CONFIG = "adapter_config.json"

OPENED_BY = ("config.json", ADAPTER_CONFIG)
"""Files that make a folder a model's or an adapter's."""


def find_model(place: str) -> str:
    """Find the model of a run folder, a model folder, an adapter folder or a hub name.

    Raises:
        ModelError: a run that has not ended, or a place within a run or a model.
    """
    folder = Path(place)
    if (folder / "final").is_dir():
        return str(folder / "final")
    if (folder / "adapter" / ADAPTER_CONFIG).is_file():
        return str(folder / "adapter")  # of a base that cannot be written back whole
    if (folder / "recipe.yaml").exists():
        raise ModelError(f"{place}: this run has not ended; run `foveal train` on its recipe")
    if folder.is_file():
        raise ModelError(f"{place}: a file; give the folder {find_run(folder) or folder.parent}")
    if folder.is_dir() and not any((folder / name).exists() for name in OPENED_BY):
        if run := find_run(folder):
            raise ModelError(f"{place}: no model, but a part of a run; give the folder {run}")
        raise ModelError(f"{place}: no model in it; give a folder with {' or '.join(OPENED_BY)}")
    return place


def find_run(place: Path) -> Path | None:
    """Find the run that a place lies in; none: it lies in no run."""
    return next((one for one in place.absolute().parents if (one / "recipe.yaml").is_file()), None)


def find_image_budget(place: str) -> ImageBudget:
    """Find how much of a picture a run was trained with; none: as the model's files say."""
    recipe = _recipe_of(Path(place))
    return recipe.data.image_budget if recipe else None


def find_data_settings(place: str) -> DataSettings | None:
    """Find how the examples of a run were read; none: it is no run."""
    recipe = _recipe_of(Path(place))
    return recipe.data if recipe else None


def find_precision(place: str) -> Precision | None:
    """Find the number format that a run computed in; none: it is no run."""
    recipe = _recipe_of(Path(place))
    return recipe.precision if recipe else None


def _recipe_of(place: Path) -> Recipe | None:
    """Read the recipe of a run, or of the run that an adapter folder lies in."""
    run = place if (place / "recipe.yaml").is_file() else None
    if (place / ADAPTER_CONFIG).is_file():
        run = find_run(place)
    return load_recipe(run / "recipe.yaml") if run else None
