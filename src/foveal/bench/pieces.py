"""What stands around the training step, measured alone: cutting pictures and planning rows."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from foveal.bench.page import NUM_CROPS, SIZES
from foveal.bench.recipe_way import recipe_pixels
from foveal.data.rows import Plan, Ragged, Sizes
from foveal.models.phi3_vision.image import cut_crops
from foveal.plan.resident import resident_bytes

QUESTIONS_A_PAGE = 4
EXAMPLES_A_STEP = 64


@dataclass(frozen=True)
class Pieces:
    """Seconds of what happens before the model."""

    cut_seconds: float
    """One letter page into crops, one core, from a decoded picture."""

    recipe_cut_seconds: float
    """The same as the published processor does it."""

    planned_examples: int
    plan_seconds: float
    """All steps of one pass, prefixes and rows found."""

    plan_bytes: int
    """Most that planning held."""


def run_pieces(examples: int, console: Console) -> Pieces:
    """Measure and print.

    Args:
        examples: to plan; four questions a page.
        console: to print on.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        plan_seconds, plan_bytes = process.submit(plan_all, examples).result()
    pieces = Pieces(*cut_both(), examples, plan_seconds, plan_bytes)
    console.print(
        f"a page into crops: {pieces.cut_seconds * 1e3:.1f} ms, the recipe's way "
        f"{pieces.recipe_cut_seconds * 1e3:.1f} ms: "
        f"{pieces.recipe_cut_seconds / pieces.cut_seconds:.1f}x\n"
        f"planning {examples:,} examples: {plan_seconds:.1f} s, {plan_bytes / 1e9:.2f} GB",
        highlight=False,
    )
    return pieces


def cut_both(repeats: int = 7) -> tuple[float, float]:
    """Cut a page both ways on one core; the fastest of several, seconds each."""
    size = SIZES["standard"]
    noise = np.random.default_rng(0).integers(0, 256, (55, 43, 3), np.uint8)
    page = Image.fromarray(noise).resize(size.page)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = _fastest(lambda: cut_crops(page, NUM_CROPS, size.crop_size), repeats)
        recipe = _fastest(lambda: recipe_pixels(page, size.crop_size), repeats)
    finally:
        torch.set_num_threads(threads)
    return ours, recipe


def _fastest(action: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)


def plan_all(examples: int) -> tuple[float, int]:
    """Plan every step of one pass; returns seconds, and bytes above the bare process."""
    before = resident_bytes("VmRSS")
    sizes = make_sizes(examples)
    start = time.perf_counter()
    plan = Plan(sizes, examples_per_step=EXAMPLES_A_STEP, tokens_per_pass=8192)
    for step in range(plan.steps_per_epoch):
        plan.step(step)
    return time.perf_counter() - start, resident_bytes("VmHWM") - before


def make_sizes(examples: int) -> Sizes:
    """Make up letter pages with four questions of 20 to 40 random tokens each."""
    random = np.random.default_rng(0)
    pages = -(-examples // QUESTIONS_A_PAGE)
    page_of = np.arange(examples, dtype=np.int32) // QUESTIONS_A_PAGE
    lengths = random.integers(20, 41, examples)
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    prompts = random.integers(100, 30000, offsets[-1], dtype=np.int32)
    prompts[offsets[:-1]] = -(1 + page_of)
    return Sizes(
        tokens=(2509 + lengths + 10).astype(np.int32),
        prompts=Ragged(prompts, offsets),
        images=Ragged(page_of, np.arange(examples + 1)),
        image_tokens=np.full(pages, 2509, np.int32),
        image_crops=np.full(pages, 17, np.int32),
    )
