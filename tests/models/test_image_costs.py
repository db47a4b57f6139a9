"""The table of what images cost is what each family's own processor counts."""

import json

import pytest
from published_images import PUBLISHED, SIZES, costs_of

from foveal.models.known import IMAGE_COSTS, letter_page_tokens


def written(kind):
    tree = json.loads(IMAGE_COSTS.read_text(encoding="utf-8"))
    assert {name: tuple(size) for name, size in tree["sizes"].items()} == SIZES
    assert set(tree["types"]) == set(PUBLISHED)
    assert tree["types"][kind]["of"] == PUBLISHED[kind][0]
    return tree["types"][kind]["tokens and crops"]


@pytest.mark.parametrize("kind", ["gemma3", "internvl", "llava_next", "phi3_v", "qwen3_vl"])
def test_a_small_image_costs_what_the_processor_makes_of_it(kind, tmp_path):
    assert costs_of(kind, tmp_path, ["small"]) == [written(kind)[list(SIZES).index("small")]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_every_size_costs_what_the_processor_makes_of_it(kind, tmp_path):
    assert costs_of(kind, tmp_path) == written(kind)


def test_known_costs_worked_out_by_hand():
    """Patches of 28 x 28 or 32 x 32 pixels; 12 tiles and a thumbnail of 256 between two marks."""
    pages = letter_page_tokens()
    assert pages["qwen2_5_vl"] == round(1275 / 28) * round(1650 / 28)
    assert pages["qwen3_vl"] == round(1275 / 32) * round(1650 / 32)
    assert pages["internvl"] == (12 + 1) * 256 + 2
    assert pages["llava"] == (336 // 14) ** 2
    assert pages["gemma3"] == 256 + 2
