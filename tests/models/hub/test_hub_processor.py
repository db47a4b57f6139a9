"""What an image costs, told from its header, is what the processor makes of its pixels."""

import pickle
import random
from functools import partial

import numpy as np
import pytest
import tiny_models_more  # noqa: F401  # enters its families
from daily import daily
from PIL import Image
from published_images import PUBLISHED, published_reader, tiny_reader

from foveal.models.hub import hub_processor, hub_reader
from foveal.models.known import ALONE, CACHED, NEEDS_TORCHVISION, SHARED

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TYPES = sorted({*SHARED, *CACHED, *ALONE} - {"phi3_v", *NEEDS_TORCHVISION})
DAILY = ("gemma3", "idefics3", "internvl", "qwen3_vl", "smolvlm")
BY_THEMSELVES = ("deepseek_vl", "gemma4", "janus")
"""Resize pixels with code of their own, of sizes too."""

STRETCH_THE_SHORT_SIDE = ("llava", "vipllava")
"""Make gigabytes of an elongated image: a shortest edge of 336 pixels is the rule, without end."""


def draw_sizes(count, longest=4000, elongation=None):
    """Sizes from 1 to 4,000 pixels, each order of magnitude as often; a third are strips."""
    draw = random.Random(count)
    while count:
        width, height = (round(longest ** draw.random()) for _ in range(2))
        if draw.random() < 0.3:
            width, height = draw.randint(1, 6), max(width, height)
        if draw.random() < 0.5:
            width, height = height, width
        if elongation is None or max(width, height) <= elongation * min(width, height):
            count -= 1
            yield width, height


def made_of_pixels(reader, size):
    """What the processor itself makes of an image of noise: ids, features, crops or patches."""
    noise = np.random.default_rng(sum(size)).integers(0, 256, (*size[::-1], 3), np.uint8)
    made = reader.processor(
        text=[reader.placeholder], images=[[Image.fromarray(noise)]], return_tensors="pt"
    )
    ids = made["input_ids"][0].tolist()
    pixels = made["pixel_values"]
    crops = len(pixels) * pixels.shape[1] if pixels.dim() == 5 else len(pixels)
    return ids, ids.count(reader.image_token_id), crops


def check(reader, sizes):
    """See that each size is counted as it comes out, or refused as it is refused; count those."""
    refused = 0
    for size in sizes:
        try:
            ids, features, crops = made_of_pixels(reader, size)
        except (RuntimeError, ValueError):
            with pytest.raises(ValueError):  # noqa: PT011
                reader.shape(*size)
            refused += 1
            continue
        shape = reader.shape(*size)
        run = shape.ids.tolist()
        at = ids.index(run[0])
        assert (size, ids[at : at + len(run)]) == (size, run)
        assert (size, features, crops) == (size, shape.features, shape.crops)
    return refused


@pytest.mark.parametrize("kind", DAILY)
def test_every_size_costs_what_its_pixels_make(kind, tmp_path):
    reader = tiny_reader(kind, tmp_path)
    assert reader._sizes is not reader.processor
    assert check(reader, draw_sizes(30, longest=1500)) < 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_hundreds_of_sizes_cost_what_their_pixels_make(kind, tmp_path):
    elongation = 60 if kind in STRETCH_THE_SHORT_SIDE else None
    check(tiny_reader(kind, tmp_path), draw_sizes(300, elongation=elongation))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(PUBLISHED.keys() - {"phi3_v"}))
def test_sizes_cost_so_with_the_settings_of_published_models(kind, tmp_path):
    elongation = 20 if kind in STRETCH_THE_SHORT_SIDE else None
    check(published_reader(kind, tmp_path), draw_sizes(60, elongation=elongation))


def counted(reader, size):
    """Tokens of an image by transformers' own arithmetic, (height, width) by (height, width)."""
    made = reader.processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])
    return made["num_image_tokens"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["idefics3", "internvl", "qwen2_5_vl", "qwen3_vl"])
def test_thousands_of_sizes_cost_what_transformers_works_out(kind, tmp_path):
    reader = published_reader(kind, tmp_path)
    elongation = 199 if kind.startswith("qwen") else None
    for size in draw_sizes(3000, elongation=elongation):
        assert (size, reader.shape(*size).tokens) == (size, counted(reader, size))


@pytest.mark.parametrize("kind", daily(*DAILY, beside=sorted({*TYPES} - {*BY_THEMSELVES, *DAILY})))
def test_no_pixel_is_resized_to_tell_a_size(kind, tmp_path, monkeypatch):
    reader = tiny_reader(kind, tmp_path)
    features = made_of_pixels(reader, (300, 200))[1]
    assert reader._sizes is not reader.processor
    monkeypatch.setattr(Image.Image, "resize", partial(pytest.fail, "a pixel was resized"))
    assert reader.shape(300, 200).features == features


def test_a_strip_that_would_be_made_of_gigabytes_is_told_at_once(tmp_path):
    reader = published_reader("llava", tmp_path)
    assert reader.shape(1, 4000).features == 576  # of 336 x 1,344,000 pixels, before the crop


def test_a_processor_that_says_other_things_without_pixels_is_given_them(tmp_path, monkeypatch):
    half = hub_processor._zeros
    monkeypatch.setattr(
        hub_processor, "_zeros", lambda height, width: half(height, width // 2 or 1)
    )
    reader = tiny_reader("qwen3_vl", tmp_path)
    assert reader._sizes is reader.processor
    check(reader, [(300, 200), (64, 640)])


def test_a_size_on_which_a_processor_breaks_is_refused_with_what_it_says(tmp_path, monkeypatch):
    reader = tiny_reader("qwen3_vl", tmp_path)

    def broken(*_, **__):
        raise RuntimeError("stack expects each tensor to be equal size")

    monkeypatch.setattr(hub_reader.HubReader, "_ask", broken)
    with pytest.raises(ValueError, match="stack expects each tensor"):
        reader.shape(30, 2000)


@pytest.mark.parametrize("kind", DAILY)
def test_a_reader_travels_to_another_process_and_tells_the_same(kind, tmp_path):
    reader = tiny_reader(kind, tmp_path)
    shape = reader.shape(90, 300)
    other = pickle.loads(pickle.dumps(reader))
    other._shapes.clear()
    assert other.shape(90, 300) == shape
    assert other._sizes is not other.processor
