"""A run folder, a model folder or a hub name -> where its model lies, and how it cuts pictures."""

from pathlib import Path

from foveal.config import Recipe, load_recipe
from foveal.errors import ModelError
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
    recipe = recipe_of(place)
    return recipe.data.image_budget if recipe else None


def recipe_of(place: str) -> Recipe | None:
    """Read the recipe of a run, or of the run that an adapter folder lies in; none: it is none."""
    folder = Path(place)
    run = folder if (folder / "recipe.yaml").is_file() else None
    if (folder / ADAPTER_CONFIG).is_file():
        run = find_run(folder)
    return load_recipe(run / "recipe.yaml") if run else None
