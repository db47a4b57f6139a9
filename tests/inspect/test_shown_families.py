"""What a page shows of a family of transformers: its own words, and no crops where it has none."""

import json
import re

import pytest
from small_runs import recipe
from tiny import pages
from tiny_models import write_tiny

from foveal.inputs import inspect_data

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_words_of_byte_level_tokens_are_shown_as_words_and_images_without_crops(tmp_path):
    write_tiny("qwen3_vl", tmp_path / "model")
    pages(tmp_path, 2, 1, "train")
    data = tmp_path / "train.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    for line in lines:
        line["conversations"][0]["assistant"] = "a caf\u00e9"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = inspect_data(recipe(tmp_path), tmp_path / "page.html", 2).read_text()
    assert "\u0120" not in page  # how such a vocabulary writes a space
    assert "\u010a" not in page
    assert "<image: " in page or "&lt;image: " in page
    shown = re.sub(r"(?s)<style>.*?</style>", "", page)
    assert not re.search(r"\b[Cc]rops\b", shown.replace('class="crops"', ""))
    assert "num_crops" not in shown
