"""The page about examples shows what the model will see, and nothing in the data can act on it."""

import base64
import io
import json
import re

import numpy as np
import pytest
from html_page import EVIL, read_page
from pairs import CHOSEN, REJECTED, pair_pages
from PIL import Image
from tiny import make_image, make_model, pages, turn, write_data

from foveal.config import DataSettings, Recipe
from foveal.data.dataset import read_dataset
from foveal.data.rows import RowPlanner
from foveal.inputs import inspect_data
from foveal.inspect import inspection
from foveal.inspect.inspection import draw_steps, see_example, see_image, write_inspection


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def charts_undrawn(monkeypatch):
    """Leave the charts undrawn, where a test is not about them."""
    monkeypatch.setattr(
        inspection, "draw", lambda name, *_, **__: f"<svg><title>{name}</title></svg>"
    )


def inspect(data, loaded, out, number=20, **plan):
    examples, dataset = read_dataset(data, loaded.processor)
    settings = {"examples_per_step": 6, "tokens_per_pass": 300} | plan
    made = RowPlanner(dataset.sizes, **settings)
    write_inspection(out, examples, dataset, loaded.processor, made, number, {"model": "tiny"})
    return read_page(out), dataset


@pytest.mark.usefixtures("charts_undrawn")
def test_an_examples_tokens_stand_in_order_and_only_the_answer_is_marked_as_learnt(
    tmp_path, loaded
):
    page, dataset = inspect(pages(tmp_path, 1, 1), loaded, tmp_path / "page.html")
    assert "".join(page.of("learnt")) == " It is 00.<|end|> ⏎\n<|endoftext|>"
    tokens = dataset.images[0].shape.tokens
    assert page.of("image") == [f"<image: {tokens:,} tokens>"]
    assert "What is number 0 of the page?<|end|>" in "".join(page.of("read"))


@pytest.mark.usefixtures("charts_undrawn")
def test_crops_are_shown_in_the_models_order_as_the_model_gets_them(tmp_path, loaded):
    # As large as its grid of 2 x 2 crops, so that nothing is blended: four plain quarters.
    quarters = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [120, 120, 120]]], np.uint8)
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.fromarray(quarters.repeat(28, 0).repeat(28, 1)).save(path)
    data = write_data(tmp_path / "data.jsonl", [[turn("q", "a", ["a.png"])]])
    page, dataset = inspect(data, loaded, tmp_path / "page.html")
    seen = see_image(dataset, 0, loaded.processor)
    assert (seen.rows, seen.columns, seen.crops) == (2, 2, 4)
    image = Image.open(io.BytesIO(base64.b64decode(seen.uri.partition(",")[2])))
    centres = [image.getpixel((x, y)) for y in (14, 42) for x in (14, 42)]
    assert [max(range(3), key=colour.__getitem__) for colour in centres[:3]] == [0, 1, 2]
    assert np.allclose(centres, quarters.reshape(4, 3), atol=25)
    assert page.of("number") == ["1", "2", "3", "4", "5"]  # the last is the whole


def test_nothing_in_the_data_reaches_the_page_as_markup(tmp_path, loaded):
    name = "a<script>x.png"
    make_image(tmp_path / "images" / name, 0)
    line = {
        "id": EVIL,
        "source": EVIL,
        "conversations": [{"images": [name], "user": EVIL, "assistant": EVIL}],
    }
    data = tmp_path / "<script>data.jsonl"
    data.write_text(json.dumps(line) + "\n")
    page, _ = inspect(data, loaded, tmp_path / "page.html")
    page.assert_inert()
    addresses = [
        value for _, found in page.elements for name, value in found.items() if name == "src"
    ]
    assert addresses
    assert all(value.startswith("data:image/webp;base64,") for value in addresses)
    assert page.count_texts("alert(1)")
    assert not re.search(r"https?://(?!www\.w3\.org)", page.source)


def test_bars_add_up_to_the_whole_width_and_name_prefix_branches_and_waste(tmp_path, loaded):
    _, dataset = read_dataset(pages(tmp_path, 2, 3), loaded.processor)
    plan = RowPlanner(dataset.sizes, examples_per_step=6, tokens_per_pass=300)
    width, (step,) = draw_steps(plan)
    assert width == 300
    assert step.examples == 6
    tokens = int(dataset.sizes.tokens.sum())
    assert step.tokens + step.saved == tokens
    kinds = [segment.kind for bar in step.bars for segment in bar]
    assert kinds.count("prefix") == 2
    assert kinds.count("branch") == 6
    for bar in step.bars:
        assert sum(segment.tokens for segment in bar) == width
        assert [segment.kind for segment in bar].index("empty") == len(bar) - 1
    filled = sum(segment.tokens for bar in step.bars for segment in bar[:-1]) / (
        300 * len(step.bars)
    )
    assert step.filled == pytest.approx(filled)


@pytest.mark.usefixtures("charts_undrawn")
def test_a_row_longer_than_the_budget_sets_the_scale(tmp_path, loaded):
    page, dataset = inspect(pages(tmp_path, 1, 1), loaded, tmp_path / "p.html", tokens_per_pass=5)
    width, _ = draw_steps(RowPlanner(dataset.sizes, examples_per_step=1, tokens_per_pass=5))
    assert width == dataset.sizes.tokens[0]
    assert any(found.get("class") == "budget" for _, found in page.elements)


def test_a_file_of_one_example_is_told_in_whole_examples(tmp_path, loaded):
    inspect(pages(tmp_path, 1, 1), loaded, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1 example in 1 pass," in text
    assert re.findall("All have [^<]*", text) == ["All have 81.", "All have 5.", "All have 1."]
    assert not re.findall(
        r">0\.[0-9]+</text>", text
    )  # of examples and pictures there are no halves


@pytest.mark.usefixtures("charts_undrawn")
def test_the_examples_shown_are_spread_over_the_file_and_named_by_line(tmp_path, loaded):
    page, _ = inspect(pages(tmp_path, 4, 2), loaded, tmp_path / "page.html", number=2)
    assert re.findall(r"data\.jsonl:(\d+)", page.text) == ["1", "5"]


def test_a_picture_that_went_bad_since_is_named_not_fatal(tmp_path, loaded):
    _, dataset = read_dataset(pages(tmp_path, 1, 1), loaded.processor)
    (tmp_path / "images" / "data-0.png").write_bytes(b"no more")
    seen = see_example(0, "data.jsonl:1", "s", dataset, loaded.processor)
    assert "data-0.png" in seen.images[0].problem
    assert not seen.images[0].uri


@pytest.mark.usefixtures("charts_undrawn")
def test_a_recipes_examples_are_inspected_without_training(tmp_path):
    data = pages(tmp_path, 2, 2)
    recipe = Recipe(
        model="phi3-vision-tiny",
        run=tmp_path / "run",
        data=DataSettings(train=data, num_crops=4, workers=0),
    )
    inspect_data(recipe, tmp_path / "page.html", 3)
    page = read_page(tmp_path / "page.html")
    assert "data.jsonl" in page.of("h1")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.usefixtures("charts_undrawn")
def test_the_answers_of_a_pair_stand_side_by_side_behind_their_prompt(tmp_path, loaded):
    file = pair_pages(tmp_path, 1, 2, rejected=2, places=(1, 3))
    examples, dataset = read_dataset(file, loaded.processor, pairs=True)
    plan = RowPlanner(dataset.sizes, examples_per_step=6, tokens_per_pass=900)
    out = tmp_path / "page.html"
    write_inspection(out, examples, dataset, loaded.processor, plan, 20, {"model": "tiny"})
    end = "<|end|> ⏎\n<|endoftext|>"
    learnt = "".join(read_page(out).of("learnt"))
    said = [CHOSEN[1], REJECTED[1], f"{REJECTED[1]} Really.", CHOSEN[3]]
    assert learnt.startswith("".join(f" {one}{end}" for one in said))
    seen = see_example(3, "line", "", dataset, loaded.processor)
    assert [one.role for one in seen.answers] == ["chosen", "rejected", "rejected"]
    assert {token.kind for token in seen.text} == {"image", "read"}
