"""What the pieces around the step promise."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pieces
import pytest
import torch
from beginnings import prompt_families
from foveal_bench.contender import recipe_pixels
from pieces import make_sizes, plan_all, run_pieces
from PIL import Image
from rich.console import Console

from foveal.models.phi3_vision.image import CLIP_MEAN, CLIP_STD, cut_crops, global_view, normalize


@pytest.mark.parametrize(("size", "grid"), [((170, 220), (4, 4)), ((220, 60), (2, 7))])
def test_both_ways_of_cutting_end_in_the_same_bits(size, grid):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    padded = recipe_pixels(image, 28)
    crops = normalize(cut_crops(image, 16, 28), CLIP_MEAN, CLIP_STD)
    rows, columns = grid
    assert len(crops) == rows * columns
    assert padded.shape == (17, 3, 28, 28)
    assert padded[1 : 1 + len(crops)].equal(crops)
    assert padded[:1].equal(global_view(crops, rows, columns))
    assert not padded[1 + len(crops) :].any()


def test_four_questions_in_a_row_show_the_same_page():
    sizes = make_sizes(10)
    assert prompt_families(sizes.prompts).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert np.array_equal(sizes.images.values, prompt_families(sizes.prompts))
    prompt = np.diff(sizes.prompts.offsets)
    assert np.array_equal(sizes.tokens, 2509 + prompt - 1 + 10)


def test_planning_plans_every_example(monkeypatch):
    planned = []
    step = pieces.RowPlanner.step
    monkeypatch.setattr(
        pieces.RowPlanner,
        "step",
        lambda plan, index: planned.append(step(plan, index)) or planned[-1],
    )
    seconds, _ = plan_all(1000)
    rows = [row for one in planned for row in one.ranks[0]]
    assert sorted(example for row in rows for example in row.examples) == list(range(1000))
    assert seconds > 0


@pytest.mark.slow
def test_planning_tells_the_memory_that_it_takes():
    # In a process of its own: the most ever held does not rise where an earlier test held more.
    probe = "from pieces import plan_all; print(plan_all(100_000)[1])"
    folder = Path(pieces.__file__).parent
    told = subprocess.run(
        [sys.executable, "-c", probe], cwd=folder, capture_output=True, check=True
    )
    prompts = make_sizes(100_000).prompts.values.nbytes
    assert prompts < int(told.stdout) < 40 * prompts


@pytest.mark.slow
def test_the_pieces_are_printed_side_by_side():
    page = io.StringIO()
    threads = torch.get_num_threads()
    measured = run_pieces(640, Console(file=page, width=120), cut_repeats=1)
    assert torch.get_num_threads() == threads
    assert measured.planned_examples == 640
    assert all(cut.seconds > 0 and cut.recipe_seconds > 0 for cut in measured.cuts)
    assert all(cut.bound == cut.recipe_seconds / cut.resize_seconds for cut in measured.cuts)
    assert "1700 x 2200 grey into crops" in page.getvalue()
    assert "planning 640 examples" in page.getvalue()
