"""A run folder, a model folder or a hub name -> where its model lies, and how it cuts pictures."""

from pathlib import Path

from foveal.config import load_recipe
from foveal.data.encode import TurnsSetting
from foveal.errors import ModelError


def find_model(place: str) -> str:
    """Find the model of a run folder, a model folder or a hub name.

    Raises:
        ModelError: a run folder that holds no finished model.
    """
    folder = Path(place)
    if (folder / "final").is_dir():
        return str(folder / "final")
    if (folder / "recipe.yaml").exists():
        raise ModelError(f"{place}: this run has not ended; run `foveal train` on its recipe")
    return place


def find_num_crops(place: str) -> int | None:
    """Find the most crops a picture that a run was trained with; none: as the model's files say."""
    recipe = Path(place) / "recipe.yaml"
    return load_recipe(recipe).data.num_crops if recipe.is_file() else None


def find_turns(place: str) -> TurnsSetting | None:
    """Find how turns followed each other in a run's training; none: as the model's files say."""
    recipe = Path(place) / "recipe.yaml"
    return load_recipe(recipe).data.turns if recipe.is_file() else None
