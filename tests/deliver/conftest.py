"""Small runs, trained once for all tests of this folder."""

from pathlib import Path

import pytest
from rich.console import Console
from tiny import SIZES, WHOLE_BLOCKS, pages

from foveal.config import Recipe
from foveal.models.phi3_vision.tiny import TinySizes, write_tiny
from foveal.run import TrainingRun


def train(place: Path, name: str, **changes: object) -> Path:
    tree: dict[str, object] = {
        "model": str(place / "model"),
        "run": str(place / name),
        "precision": "float32",
        "data": {
            "train": str(place / "train.jsonl"),
            "validation": str(place / "validation.jsonl"),
            "workers": 0,
            "num_crops": 3,
        },
        "train": {
            "max_steps": 4,
            "epochs": 2,
            "examples_per_step": 4,
            "tokens_per_pass": 600,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "save_every_steps": 2,
            "evaluate_every_steps": 2,
        },
        "lora": {"rank": 4, "alpha": 12},
        "evaluate": {"max_new_tokens": 4, "metrics": ["anls", "accuracy"]},
    }
    TrainingRun(Recipe.model_validate(tree | changes), Console(quiet=True)).go()
    return place / name


def furnish(folder: Path, sizes: TinySizes) -> Path:
    """A base model, training and validation examples."""
    write_tiny(folder / "model", 0, sizes)
    pages(folder, 4, 3, "train")
    pages(folder, 5, 2, "validation")
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("deliver"), SIZES)


@pytest.fixture(scope="session")
def full_run(place: Path) -> Path:
    return train(place, "full")


@pytest.fixture(scope="session")
def lora_run(place: Path) -> Path:
    return train(place, "lora", strategy="lora")


@pytest.fixture(scope="session")
def varied_run(place: Path) -> Path:
    """Adapters of two sizes, with rsLoRA's scale and DoRA's lengths."""
    small = {"match": "language.layers.*.mlp.*", "adapter": True, "rank": 2, "alpha": 5}
    rules = [small | {"learn": False}, {"match": "*", "adapter": True, "learn": False}]
    lora = {"rank": 4, "alpha": 12, "rslora": True, "dora": True}
    return train(place, "varied", strategy=rules, lora=lora)


@pytest.fixture(scope="session")
def qlora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = furnish(tmp_path_factory.mktemp("four-bits"), WHOLE_BLOCKS)
    return train(place, "qlora", strategy="qlora")
