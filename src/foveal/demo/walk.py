"""The whole walk on a tiny model and bundled images: convert, evaluate, train, report."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rich.console import Console

from foveal.config import load_recipe, quoted
from foveal.data.convert import convert
from foveal.data.example import read_examples, write_examples
from foveal.demo.lessons import (
    Lesson,
    Scene,
    count_objects,
    examples_of,
    statements_about_one,
    statements_about_two,
)
from foveal.errors import ModelError
from foveal.run import Outcome, TrainingRun

PHI3_VISION = "phi3_v"
FAMILIES = (PHI3_VISION, "qwen3_vl", "smolvlm")
"""Of which the demo trains a small model; the first is the recipe's own."""

DATA = Path(__file__).parent / "data"
EXAMPLES_PER_STEP = 24
LESSONS = tuple(
    Lesson(name, num_images, steps * EXAMPLES_PER_STEP // (1 + statements), statements, any_order)
    for name, num_images, steps, statements, any_order in (
        ("colors-in-order", 1, 120, 0, False),
        ("colors-in-any-order", 1, 420, 0, True),
        ("one-picture", 1, 450, 5, True),
        ("two-pictures", 2, 1250, 7, True),
    )
)
"""Of Phi-3-vision."""

LONGER = 2000 / 1250
"""How much longer other families learn from two images, to judge one of them by itself."""

GPU_COMMAND = (
    "torchrun --nproc-per-node 8 -m foveal.cli train recipes/nlvr2/full.yaml "
    "data.train=train.jsonl data.validation=validation.jsonl run=runs/nlvr2"
)


def run_demo(out: Path, console: Console, family: str = "") -> Outcome:
    """Leave a complete run folder in `out`: data, model, checkpoints, scores and report.

    Args:
        out: to write to.
        console: to tell on.
        family: of the small model; its `model_type`; empty: Phi-3-vision.

    Raises:
        ModelError: no small model of this family is made here.
    """
    family = family or PHI3_VISION
    if family not in FAMILIES:
        raise ModelError(f"--family {family}: give {', '.join(FAMILIES)}")
    data = out / "data"
    console.print(f"Unpacking the bundled NLVR pictures into {data}", highlight=False)
    convert("nlvr", DATA, data)
    write_lessons(data, lessons_of(family))
    files = {"train": data / "lessons.jsonl", "validation": data / "nlvr_pairs_dev.jsonl"}
    chosen = (*quoted(run=out), *quoted("data.", **files))
    if family != PHI3_VISION:
        chosen += quoted(model=_write_model(family, out / "model", data))
    return TrainingRun(load_recipe(DATA / "demo.yaml", chosen), console).go()


def _write_model(family: str, folder: Path, data: Path) -> Path:
    """Write the small model of a family, unless it is there; it suits the lessons."""
    from foveal.demo.tiny_families import TINY_FAMILIES, write_tiny_family
    from foveal.inputs import quiet_libraries

    quiet_libraries()
    if not folder.exists():
        examples = list(read_examples(data / "lessons.jsonl"))
        turns = [turn for one in examples for turn in one.turns]
        texts = sorted({text for turn in turns for text in (turn.user, turn.assistant)})
        shown = [data / "images" / name for one in examples[:32] for name in one.images]
        write_tiny_family(TINY_FAMILIES[family], folder, 0, texts, shown)
    return folder


def lessons_of(family: str) -> tuple[Lesson, ...]:
    """List the lessons of a family, which end with the pairs of images."""
    if family == PHI3_VISION:
        return LESSONS
    *before, pairs = LESSONS
    return (*before, replace(pairs, num_draws=int(LONGER * pairs.num_draws)))


def write_lessons(data: Path, lessons: Sequence[Lesson] = LESSONS, seed: int = 0) -> Path:
    """Write the training file: to count, then statements about one image, then about two."""
    scenes = read_scenes(data)
    statements = {1: statements_about_one(), 2: statements_about_two()}
    path = data / "lessons.jsonl"
    taught = (examples_of(one, scenes, statements[one.num_images], seed) for one in lessons)
    write_examples(path, chain.from_iterable(taught))
    return path


def read_scenes(data: Path) -> list[Scene]:
    """Find the unpacked training images and what NLVR says is in them."""
    with zipfile.ZipFile(DATA / "nlvr_dev.zip") as archive:
        lines = archive.read("nlvr/dev/dev.json").decode().splitlines()
    counts = {
        line["identifier"]: count_objects(line["structured_rep"]) for line in map(json.loads, lines)
    }
    images = sorted((data / "images" / "dev").glob("*/*.png"))
    return [
        Scene(
            image.relative_to(data / "images").as_posix(),
            counts[image.stem.removeprefix("dev-").rpartition("-")[0]],
        )
        for image in images
    ]
