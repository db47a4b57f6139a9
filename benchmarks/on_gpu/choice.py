"""Fifty ragged steps with each kind of attention -> which one `auto` should take on this device."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from foveal_bench.contender import LORA, SETTINGS
from foveal_bench.random_page import (
    LETTERS,
    BenchSize,
    LetterProcessor,
    encode_page,
    find_size,
    make_model,
)
from PIL import Image

from foveal.data.dataset import Dataset
from foveal.data.example import Example, Turn
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.rows import RowPlanner
from foveal.machine import Precision
from foveal.models.family import LoadedModel
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.shared_rows import FASTEST, choose_attention
from foveal.train.engines.one_process import Engine
from foveal.train.learner import make_learner
from foveal.train.step import train_step
from on_gpu.record import Record, Values

PART = "choice"
STEPS, PAGES_A_STEP = 50, 3
MOST_QUESTIONS = 6
LAYERS = 4
"""Of the decoder: each has the same attention, so a few tell."""

WORTH_COMPILING = 0.97
"""Share of the other's time below which a kind that must be compiled is worth it."""


@dataclass(frozen=True)
class Ragged:
    """How fifty steps went with one kind of attention."""

    attention: str
    seconds: float
    """Of all steps, what was compiled in them included."""

    settled_seconds: float
    """Of a step of the second half, the median."""

    graphs: int
    """Compiled in all."""

    late_graphs: int
    """Compiled in the second half: more would come in a longer run."""


def run(record: Record, size: str, precision: Precision, device: str) -> None:
    """Measure each kind and say which belongs into `FASTEST`."""
    kinds = ("blocks", "flex") if device == "cuda" else ("blocks", "sdpa")  # flex: no backward here
    found: dict[str, Ragged] = {}

    def take(kind: str) -> Values:
        found[kind] = ragged_steps(kind, size, precision)
        return vars(found[kind])

    for kind in kinds:
        record.take(PART, f"{STEPS} ragged steps, {kind}", partial(take, kind))
    if len(found) == len(kinds):
        chosen = choose(*found.values())
        said = {
            "chosen": chosen,
            "now": FASTEST[device],
            "place": "foveal.models.shared_rows.FASTEST",
        }
        record.write(PART, "attention: auto", said)


def choose(plain: Ragged, compiled: Ragged) -> str:
    """Take the compiled kind where it is clearly faster and its compiling comes to an end."""
    faster = compiled.settled_seconds < WORTH_COMPILING * plain.settled_seconds
    return compiled.attention if faster and not compiled.late_graphs else plain.attention


def ragged_steps(attention: str, size_name: str, precision: Precision) -> Ragged:
    """Take fifty LoRA steps over rows of many lengths and groups."""
    whole = find_size(size_name)
    size = replace(whole, layers=min(LAYERS, whole.layers), tower_layers=3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine = Engine(precision)
    model = make_model(size)
    model.set_attn_implementation(choose_attention(attention))
    processor = LetterProcessor(size)
    loaded = LoadedModel(model, processor, FAMILY)
    learner = make_learner(engine, loaded, "lora", SETTINGS, LORA, recompute="none")
    optimizer = learner.optimizer
    with TemporaryDirectory() as folder:
        dataset = ragged_pages(size, Path(folder))
        plan = plan_of(dataset, size)
        batches = RowBatches(dataset, processor, "token")
        taken, graphs = [], []
        for work in StepLoader(plan, batches).steps(0, STEPS):
            rows = list(work.batches)  # opened before the clock starts
            start = time.perf_counter()
            train_step(engine, learner.loss, optimizer, rows, SETTINGS.gradient_clip)
            if engine.device.type != "cpu":
                torch.accelerator.synchronize()
            taken.append(time.perf_counter() - start)
            graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    half = STEPS // 2
    return Ragged(
        attention, sum(taken), median(taken[half:]), graphs[-1], graphs[-1] - graphs[half - 1]
    )


def plan_of(dataset: Dataset, size: BenchSize) -> RowPlanner:
    """Cut the examples into fifty steps of a few rows each."""
    return RowPlanner(
        dataset.sizes,
        examples_per_step=len(dataset.examples) // STEPS,
        tokens_per_pass=2 * size.tokens_per_pass,
    )


def ragged_pages(size: BenchSize, folder: Path) -> Dataset:
    """Write small pictures of many shapes, and one to six questions about each."""
    return encode_page(list(_examples(size, folder)), size, folder)


def _examples(size: BenchSize, folder: Path) -> Iterator[Example]:
    drawn = random.Random(0)

    def letters(most: int) -> str:
        return "".join(drawn.choices(LETTERS, k=drawn.randint(1, most)))

    for page in range(STEPS * PAGES_A_STEP):
        shape = drawn.randint(20, 60), drawn.randint(20, 60)
        noise = np.random.default_rng(page).integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{page}.png")
        for number in range(drawn.randint(1, MOST_QUESTIONS)):
            turn = Turn(
                images=(f"{page}.png",),
                user=letters(2 * size.question_tokens[1]),
                assistant=letters(2 * size.answer_tokens),
            )
            yield Example(id=f"{page}-{number}", conversations=(turn,))
