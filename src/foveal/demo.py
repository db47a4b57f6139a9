"""The whole walk on a tiny model and bundled pictures: convert, evaluate, train, report."""

import json
import zipfile
from itertools import chain
from pathlib import Path

import yaml
from rich.console import Console

from foveal.config import Recipe
from foveal.data.convert import convert
from foveal.data.example import write_examples
from foveal.demo_statements import (
    Scene,
    count_objects,
    lesson,
    reading_lesson,
    statements_about_one,
    statements_about_two,
)
from foveal.run import Outcome, TrainingRun

DATA = Path(__file__).parent / "demo_data"
EXAMPLES_PER_STEP = 24
READING_STEPS = 100
FIRST_LESSON = (1000, 4, 6)
SECOND_LESSON = (1600, 4, 6)
"""(steps, draws of pictures a step, statements a draw)."""

GPU_COMMAND = (
    "torchrun --nproc-per-node 8 -m foveal.cli train recipes/nlvr2/full.yaml "
    "data.train=train.jsonl data.validation=validation.jsonl run=runs/nlvr2"
)


def run_demo(out: Path, console: Console) -> Outcome:
    """Leave a complete run folder in `out`: data, model, checkpoints, scores and report."""
    data = out / "data"
    console.print(f"Unpacking the bundled NLVR pictures into {data}", highlight=False)
    convert("nlvr", DATA, data)
    write_lessons(data)
    tree = yaml.safe_load((DATA / "demo.yaml").read_text(encoding="utf-8"))
    tree["run"] = str(out)
    tree["data"] |= {
        "train": str(data / "lessons.jsonl"),
        "validation": str(data / "nlvr_pairs_dev.jsonl"),
    }
    return TrainingRun(Recipe.model_validate(tree), console).go()


def write_lessons(data: Path, seed: int = 0) -> Path:
    """Write the training file: reading first, then statements about one picture, then about two."""
    scenes = read_scenes(data)
    path = data / "lessons.jsonl"
    parts = [
        lesson(scenes, statements, images, steps * draws, each, name, seed)
        for name, images, statements, (steps, draws, each) in (
            ("one", 1, statements_about_one(), FIRST_LESSON),
            ("two", 2, statements_about_two(), SECOND_LESSON),
        )
    ]
    reading = reading_lesson(READING_STEPS * EXAMPLES_PER_STEP, "read", seed)
    write_examples(path, chain(reading, *parts))
    return path


def read_scenes(data: Path) -> list[Scene]:
    """Find the unpacked training pictures and what NLVR says is in them."""
    with zipfile.ZipFile(DATA / "nlvr_dev.zip") as archive:
        lines = archive.read("nlvr/dev/dev.json").decode().splitlines()
    counts = {
        line["identifier"]: count_objects(line["structured_rep"]) for line in map(json.loads, lines)
    }
    pictures = sorted((data / "images" / "dev").glob("*/*.png"))
    return [
        Scene(
            picture.relative_to(data / "images").as_posix(),
            counts[picture.stem.removeprefix("dev-").rpartition("-")[0]],
        )
        for picture in pictures
    ]
