"""Builds tiny models, pictures and data sets, in code."""

import atexit
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
from PIL import Image

from foveal.models.family import LoadedModel
from foveal.models.loading import load
from foveal.models.phi3_vision.tiny import TinySizes, write_tiny

SIZES = TinySizes(
    crop_size=28,
    patch_size=7,
    tower_width=32,
    tower_layers=3,
    tower_heads=2,
    width=32,
    layers=2,
    heads=2,
    original_context=256,
)
"""Small enough for tests; examples longer than 256 tokens use the long rotary factors."""

WHOLE_BLOCKS = replace(SIZES, width=64, tower_width=64)
"""Every row fills blocks of 64: in 4 bits, all kernels of all processors get these widths right."""


@cache
def _made(seed: int) -> Path:
    folder = Path(mkdtemp(prefix="tiny-model-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    write_tiny(folder, seed, SIZES)
    return folder


def write_model(folder: Path, seed: int = 0) -> Path:
    """Put a tiny model into a folder: made once, then copied."""
    copytree(_made(seed), folder, dirs_exist_ok=True)
    return folder


def make_model(folder: Path, seed: int = 0, attention: str = "auto") -> LoadedModel:
    if not (folder / "config.json").exists():
        write_model(folder, seed)
    return load(str(folder), 4, attention)


def make_image(path: Path, seed: int, size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def turn(user: str, assistant: str, images: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    return {"images": list(images), "user": user, "assistant": assistant, **more}


def write_data(path: Path, conversations: Sequence[Sequence[dict[str, Any]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": f"example-{number}", "source": "test", "conversations": list(turns)})
        for number, turns in enumerate(conversations)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def pages(folder: Path, num_pages: int = 4, questions: int = 3, name: str = "data") -> Path:
    """A JSONL file: `questions` questions about each of `num_pages` pictures."""
    conversations = []
    for page in range(num_pages):
        image = f"{name}-{page}.png"
        make_image(folder / "images" / image, page, (60 + 20 * (page % 3), 40))
        conversations += [
            [turn(f"What is number {number} of the page?", f"It is {page}{number}.", [image])]
            for number in range(questions)
        ]
    return write_data(folder / f"{name}.jsonl", conversations)
