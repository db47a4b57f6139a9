"""What the script that draws pages promises."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.checking.check import check_file
from foveal.data.example import read_examples
from foveal.models.phi3_vision.tiny import cut_vocabulary


@pytest.fixture
def drawing(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("draw_pages")


def lines_of(path, drawing):
    """Read a page back from its pixels: what is true of each line."""
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    pitch, found = drawing.PageStyle().pitch, []
    for top in range(0, pitch * 6, pitch):
        band = pixels[top + 2 : top + pitch - 2, 2:-2]
        counts = {
            name: (band == np.array(paper)).all(axis=2).sum()
            for name, paper in drawing.PAPERS.items()
        }
        paper = max(counts, key=counts.get)
        distances = [np.abs(band - np.array(ink)).sum(axis=2) for ink in drawing.INKS.values()]
        color = list(drawing.INKS)[
            int(np.argmin([np.sort(one, None)[:3].sum() for one in distances]))
        ]
        columns = np.flatnonzero((np.min(distances, axis=0) < 150).any(axis=0))
        length = (columns[-1] - columns[0]) / pixels.shape[1]
        before, behind = columns[0], band.shape[1] - columns[-1]
        found.append(
            {
                "color": color,
                "paper": paper,
                "length": "long" if length > 0.45 else "short",
                "left": "yes" if before < behind else "no",
            }
        )
    return found


def test_the_answers_are_what_the_pixels_show(drawing, tmp_path):
    path = drawing.draw_pages(tmp_path, pages=20, seed=3, questions=(8, 8))
    read = 0
    for example in read_examples(path):
        (turn,) = example.turns
        verb, feature = example.id.split("-")[2:]
        assert turn.user == drawing.question(verb, feature)
        lines = lines_of(tmp_path / "images" / turn.images[0], drawing)
        assert turn.assistant == " ".join(line[feature] for line in lines), example.id
        read += 1
    assert read == 160


@pytest.mark.parametrize("feature", ["color", "paper", "left"])
def test_each_feature_changes_the_picture_of_its_line_alone(drawing, feature):
    style = drawing.PageStyle()
    one, other = drawing.FEATURES[feature][:2]
    lines = [drawing.invent_line(style, np.random.default_rng(seed)) for seed in range(6)]
    pages = []
    for value in (one, other):
        changed = drawing.Line({**lines[2].features, feature: value}, lines[2].text)
        page = drawing.draw_page([*lines[:2], changed, *lines[3:]], style)
        pages.append(np.asarray(page, int))
    differs = np.flatnonzero((pages[0] != pages[1]).any(axis=(1, 2)))
    assert len(differs)
    assert set(differs // style.pitch) == {2}


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
    counts = {asked.count(image) for image in asked}
    assert counts <= {2, 3, 4, 5}
    assert len(counts) > 1
    assert not list(check_file(path, workers=1))


def test_all_answers_have_as_many_tokens_as_each_other(drawing, tmp_path):
    examples = list(read_examples(drawing.draw_pages(tmp_path, pages=4, questions=(8, 8))))
    turns = [turn for one in examples for turn in one.turns]
    texts = {text for turn in turns for text in (f"\n{turn.user}", turn.assistant)}
    encode = cut_vocabulary(texts).tokenize
    assert {len(encode(turn.assistant)) for turn in turns} == {6}
