"""What stands around the training step, measured alone: cutting pictures and planning rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from beginnings import sizes_in_memory
from foveal_bench.contender import recipe_pixels
from foveal_bench.random_page import NUM_CROPS, SIZES
from PIL import Image
from rich.console import Console

from foveal.data.encoded.column_files import Ragged
from foveal.data.parallel import in_new_process
from foveal.data.row_planning.groups import Sizes
from foveal.data.rows import RowPlanner
from foveal.models.phi3_vision.image import crop_grid, cut_crops, resize_lying, without_colour
from foveal.plan.this_machine import resident_bytes

QUESTIONS_A_PAGE = 4
EXAMPLES_A_STEP = 64

PICTURES = (
    (1700, 2200, False),
    (1700, 2200, True),
    (2200, 1700, False),
    (1024, 1024, False),
    (640, 480, False),
    (480, 640, False),
    (3000, 4000, False),
    (4000, 3000, False),
)
"""Width, height, and whether it is grey: letter pages, screens and photographs."""


@dataclass(frozen=True)
class Cut:
    """Seconds of one decoded picture into crops, on one core."""

    width: int
    height: int
    """Of the picture, pixels."""

    is_grey: bool
    """Whether it is a scan without colour."""

    seconds: float
    recipe_seconds: float
    """As the published processor does it: to floats, padded, stacked."""

    resize_seconds: float
    """Of Pillow's resizing alone, without which no way gives the published bits."""

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.recipe_seconds / self.seconds

    @property
    def bound(self) -> float:
        """How many times faster it would be if there were nothing but resizing."""
        return self.recipe_seconds / self.resize_seconds

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.width} x {self.height}{' grey' * self.is_grey} into crops: "
            f"{self.seconds * 1e3:.1f} ms, the recipe's way {self.recipe_seconds * 1e3:.1f} ms: "
            f"{self.ratio:.2f}x; resizing alone {self.resize_seconds * 1e3:.1f} ms, "
            f"so at most {self.bound:.2f}x"
        )


@dataclass(frozen=True)
class Pieces:
    """Seconds of what happens before the model."""

    cuts: tuple[Cut, ...]
    planned_examples: int
    plan_seconds: float
    """All steps of one pass, prefixes and rows found."""

    plan_bytes: int
    """Most that planning held."""


def run_pieces(examples: int, console: Console, cut_repeats: int = 15) -> Pieces:
    """Measure and print.

    Args:
        examples: to plan; four questions a page.
        console: to print on.
        cut_repeats: turns of each way of cutting a picture.
    """
    plan_seconds, plan_bytes = in_new_process(plan_all, examples)
    cuts = tuple(cut_both(*picture, repeats=cut_repeats) for picture in PICTURES)
    pieces = Pieces(cuts, examples, plan_seconds, plan_bytes)
    for cut in cuts:
        console.print(str(cut), highlight=False)
    console.print(
        f"planning {examples:,} examples: {plan_seconds:.1f} s, {plan_bytes / 1e9:.2f} GB",
        highlight=False,
    )
    return pieces


def cut_both(width: int, height: int, is_grey: bool, repeats: int) -> Cut:
    """Cut a picture both ways in turn, and only resize it, on one core; the fastest counts."""
    size = SIZES["standard"].crop_size
    noise = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    picture = Image.fromarray(noise).convert("L" if is_grey else "RGB").resize((width, height))
    picture = picture.convert("RGB")
    bands, resized = without_colour(picture), crop_grid(width, height, NUM_CROPS, size).resized
    ways = (
        lambda: cut_crops(picture, NUM_CROPS, size),
        lambda: recipe_pixels(picture, size),
        lambda: resize_lying(bands, resized),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = [[_time(way) for way in ways] for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads)
    return Cut(width, height, is_grey, *(min(seconds) for seconds in zip(*taken, strict=True)))


def _time(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def plan_all(examples: int) -> tuple[float, int]:
    """Plan every step of one pass; returns seconds, and bytes above the bare process."""
    before = resident_bytes("VmRSS")
    sizes = make_sizes(examples)
    start = time.perf_counter()
    plan = RowPlanner(sizes, examples_per_step=EXAMPLES_A_STEP, tokens_per_pass=8192)
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
    return sizes_in_memory(
        tokens=(2509 + lengths + 10).astype(np.int32),
        prompts=Ragged(prompts, offsets),
        images=Ragged(page_of, np.arange(examples + 1)),
        image_tokens=np.full(pages, 2509, np.int32),
        image_crops=np.full(pages, 17, np.int32),
    )
