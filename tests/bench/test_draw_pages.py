"""What the script that draws pages promises."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.check import check_file
from foveal.data.example import read_examples


@pytest.fixture
def drawing(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("draw_pages")


def ink_rows(path, drawing):
    """Read a page back from its pixels: the ink and the width of each line that is there."""
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    pitch, found = drawing.PageStyle().pitch, []
    for top in range(0, pitch * 6, pitch):
        band = pixels[top : top + pitch]
        dark = band.sum(axis=2) < 600
        if dark.any():
            strongest = band[np.unravel_index(band.sum(axis=2).argmin(), dark.shape)]
            inks = drawing.INKS.items()
            ink = min(inks, key=lambda one: abs(np.array(one[1]) - strongest).sum())[0]
            columns = np.flatnonzero(dark.any(axis=0))
            found.append((ink, (columns[-1] - columns[0]) / pixels.shape[1]))
    return found


def test_the_answers_are_what_the_pixels_show(drawing, tmp_path):
    path = drawing.draw_pages(tmp_path, pages=30, seed=3)
    for example in read_examples(path):
        (turn,) = example.turns
        lines = ink_rows(tmp_path / "images" / turn.images[0], drawing)
        words = turn.user.rstrip("?").split()
        number = next((drawing.NUMBERS.index(w) for w in words if w in drawing.NUMBERS), None)
        if number is None:
            expected = drawing.NUMBERS[len(lines) - 1]
        elif "color" in words:
            expected = lines[number][0]
        else:
            expected = "long" if lines[number][1] > 0.55 else "short"
        assert turn.assistant == expected, (example.id, turn.user)
        assert turn.assistant in turn.choices


def test_the_same_seed_draws_the_same_pages(drawing, tmp_path):
    first, again, other = (
        drawing.draw_pages(tmp_path / name, pages=3, seed=seed)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    for page in sorted((tmp_path / "first" / "images").iterdir()):
        assert page.read_bytes() == (tmp_path / "again" / "images" / page.name).read_bytes()


def test_each_page_is_asked_as_often_as_wanted_and_the_file_checks_well(drawing, tmp_path):
    path = drawing.draw_pages(tmp_path, pages=20, questions=(2, 5))
    asked = [example.turns[0].images[0] for example in read_examples(path)]
    counts = {asked.count(picture) for picture in asked}
    assert counts <= {2, 3, 4, 5}
    assert len(counts) > 1
    assert not list(check_file(path, workers=1))
