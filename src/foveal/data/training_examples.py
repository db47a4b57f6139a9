"""The data of a recipe + a processor -> the examples that are trained on, for who only looks."""

from pathlib import Path

from foveal.config import Recipe
from foveal.data.convert.unpack import unpacked
from foveal.data.dataset import Dataset, read_dataset
from foveal.data.images.objects import image_base
from foveal.data.lines import Examples
from foveal.data.turn_processor import TurnProcessor


def training_files(recipe: Recipe, folder: Path) -> list[Path]:
    """Name a recipe's training files as JSONL; what is of another kind is unpacked to a folder."""
    return [unpacked(file.path, folder, recipe.data.columns) for file in recipe.data.train_files]


def read_training_examples(
    recipe: Recipe, files: list[Path], processor: TurnProcessor
) -> tuple[Examples, Dataset]:
    """Read them as the recipe's run would, in this process alone."""
    data = recipe.data
    return read_dataset(
        files,
        processor,
        image_base(data),
        data.cache,
        data.workers,
        [file.weight for file in data.train_files],
        pairs=recipe.learns_pairs,
    )
