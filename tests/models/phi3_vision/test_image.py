"""A picture becomes the reference's crops, and costs the reference's tokens."""

from functools import cache
from hashlib import sha256

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, read_json, synthetic_image
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import load_file

from foveal.data.images.media import to_rgb
from foveal.errors import DataError
from foveal.models.phi3_vision.image import (
    CLIP_MEAN,
    CLIP_STD,
    crop_grid,
    cut_crops,
    global_view,
    normalize,
    num_image_tokens,
)

FACTS = read_json("images/images.json")
IMAGES = {facts["name"]: facts for facts in FACTS["images"]}
WHOLE = [name for name, facts in IMAGES.items() if "hd_rgb_sha256" in facts]
CONVERTED = sorted(IMAGES.keys() - set(WHOLE))
SIDES = st.integers(1, 4000)


@cache
def pixel_samples():
    return load_file(GOLDEN / "images" / "pixels.safetensors")


def drawn(facts):
    made = synthetic_image(facts["width"], facts["height"], facts["s"])
    return to_rgb(made.convert(facts.get("convert", "RGB")))


def joined(crops, grid):
    """Lay crops side by side again: (height, width, 3), uint8."""
    cut = crops.numpy().reshape(grid.rows, grid.columns, 3, grid.crop_size, grid.crop_size)
    return cut.transpose(0, 3, 1, 4, 2).reshape(grid.height, grid.width, 3)


def test_every_size_of_the_table_costs_the_references_tokens():
    assert len(FACTS["size_table"]) == 360
    for width, height, num_crops, hd_height, hd_width, tokens in FACTS["size_table"]:
        if 0 in (hd_height, hd_width):
            with pytest.raises(DataError, match="elongated"):
                crop_grid(width, height, num_crops)
            continue
        grid = crop_grid(width, height, num_crops)
        assert (grid.height, grid.width) == (hd_height, hd_width)
        assert num_image_tokens(grid.rows, grid.columns) == tokens


@pytest.mark.parametrize("name", WHOLE)
def test_the_fitted_picture_is_the_references_to_the_bit(name):
    facts = IMAGES[name]
    image = drawn(facts)
    grid = crop_grid(image.width, image.height, facts["num_crops"])
    fitted = joined(cut_crops(image, facts["num_crops"]), grid)
    assert list(fitted.shape[:2]) == facts["image_size_hw"]
    assert num_image_tokens(grid.rows, grid.columns) == facts["num_img_tokens"]
    assert sha256(fitted.tobytes()).hexdigest() == facts["hd_rgb_sha256"]


@pytest.mark.parametrize("name", WHOLE)
def test_every_crop_holds_the_references_pixels(name):
    facts = IMAGES[name]
    own = normalize(cut_crops(drawn(facts), facts["num_crops"]), CLIP_MEAN, CLIP_STD)
    rows, columns = (side // 336 for side in facts["image_size_hw"])
    view = global_view(own, rows, columns)
    samples = pixel_samples()[f"{name}.pixels"]
    assert len(own) == facts["real_crops_including_global"] - 1
    torch.testing.assert_close(
        own[:, :, 5::53, 3::47], samples[1 : len(own) + 1], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(view[:, :, 5::53, 3::47], samples[:1], atol=2e-5, rtol=0)
    crops = torch.cat([view, own]).double()
    means = crops.mean((1, 2, 3)).tolist()
    assert means == pytest.approx(facts["crop_mean"], abs=1e-6)
    assert crops.abs().mean((1, 2, 3)).tolist() == pytest.approx(facts["crop_absmean"], abs=1e-6)


@pytest.mark.parametrize("name", CONVERTED)
def test_a_picture_of_another_mode_gives_the_references_crops(name):
    facts = IMAGES[name]
    image = drawn(facts)
    grid = crop_grid(image.width, image.height, facts["num_crops"])
    assert [grid.height, grid.width] == facts["image_size_hw"]
    assert num_image_tokens(grid.rows, grid.columns) == facts["num_img_tokens"]
    own = normalize(cut_crops(image, facts["num_crops"]), CLIP_MEAN, CLIP_STD)
    crops = torch.cat([global_view(own, grid.rows, grid.columns), own]).double()
    assert crops.mean((1, 2, 3)).tolist() == pytest.approx(facts["crop_mean"], abs=1e-6)


def published_crops(image, num_crops, crop_size):
    """As the published code has it: a tall picture lies on its side while it is fitted."""
    tall = image.width < image.height
    lying = image.transpose(Image.Transpose.TRANSPOSE) if tall else image
    grid = crop_grid(lying.width, lying.height, num_crops, crop_size)
    fitted = lying.resize(grid.resized, Image.Resampling.BILINEAR)
    above = (grid.height - fitted.height) // 2
    below = grid.height - fitted.height - above
    fitted = ImageOps.expand(fitted, (0, above, 0, below), fill=(255, 255, 255))
    if tall:
        fitted = fitted.transpose(Image.Transpose.TRANSPOSE)
    drawn = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
    rows, columns = fitted.height // crop_size, fitted.width // crop_size
    cut = drawn.reshape(3, rows, crop_size, columns, crop_size)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, 3, crop_size, crop_size)


SMALL_SIDES = st.integers(1, 400)


@settings(max_examples=300)
@given(
    SMALL_SIDES,
    SMALL_SIDES,
    st.integers(1, 20),
    st.sampled_from([28, 56]),
    st.sampled_from(["colour", "grey", "grey but for one pixel"]),
    st.integers(0, 2**32 - 1),
)
def test_a_picture_of_any_size_and_colour_gives_the_published_bits(
    width, height, num_crops, crop_size, colours, seed
):
    assume(max(width, height) <= crop_size * min(width, height))
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    if colours != "colour":
        pixels[:] = pixels[:, :, :1]
    if colours == "grey but for one pixel":
        spot = pixels[random.integers(height), random.integers(width)]
        spot[random.integers(3)] ^= 1 << random.integers(8)
    image = Image.fromarray(pixels)
    crops = cut_crops(image, num_crops, crop_size)
    assert crops.dtype == torch.uint8
    assert crops.is_contiguous()
    assert torch.equal(crops, published_crops(image, num_crops, crop_size))


@pytest.mark.parametrize("size", [(336, 336), (100, 300), (12, 9)])
def test_a_picture_of_a_single_crop_is_its_own_global_view(size):
    own = normalize(cut_crops(synthetic_image(*size, 3), 1), CLIP_MEAN, CLIP_STD)
    assert own.shape == (1, 3, 336, 336)
    assert torch.equal(global_view(own, 1, 1), own)


def test_crops_lie_row_by_row():
    # A picture of 2 x 2 plain quarters, as large as its grid: nothing is blended.
    quarters = np.array([[[10, 0, 0], [20, 0, 0]], [[30, 0, 0], [40, 0, 0]]], np.uint8)
    image = Image.fromarray(quarters.repeat(56, 0).repeat(56, 1))
    crops = cut_crops(image, num_crops=4, crop_size=56)
    assert crops.dtype == torch.uint8
    assert crops.shape == (4, 3, 56, 56)
    assert crops[:, 0].flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30, 40]


def test_what_the_picture_does_not_fill_is_white_on_both_sides():
    grid = crop_grid(100, 60, num_crops=1, crop_size=50)
    assert grid.resized == (50, 30)
    (crop,) = cut_crops(Image.new("RGB", (100, 60), (7, 8, 9)), num_crops=1, crop_size=50)
    rows = crop[:, :, 25].T.tolist()
    assert rows == [[255] * 3] * 10 + [[7, 8, 9]] * 30 + [[255] * 3] * 10


@given(SIDES, SIDES, st.integers(1, 20))
def test_a_grid_never_has_more_crops_than_allowed_and_keeps_the_pictures_shape(
    width, height, num_crops
):
    try:
        grid = crop_grid(width, height, num_crops)
    except DataError:
        assert max(width, height) > 336 * min(width, height)
        return
    assert grid.rows * grid.columns <= num_crops
    assert 0 <= grid.width - grid.resized[0] < 336
    assert 0 <= grid.height - grid.resized[1] < 336
    assert (grid.width, grid.height)[height > width] == max(grid.resized)
    turned = crop_grid(height, width, num_crops)
    assert (turned.rows, turned.columns) == (grid.columns, grid.rows)


def test_a_picture_without_a_short_side_is_refused_in_one_line():
    assert crop_grid(336, 1, num_crops=1).resized == (336, 1)
    with pytest.raises(DataError, match=r"^a picture of 337 x 1 pixels is too elongated for 1 .*$"):
        crop_grid(337, 1, num_crops=1)
    with pytest.raises(DataError, match="1 x 2000"):
        cut_crops(Image.new("RGB", (1, 2000)), num_crops=4)


def test_normalised_pixels_have_the_published_mean_and_spread_and_floats_pass():
    bytes_ = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    made = normalize(bytes_, CLIP_MEAN, CLIP_STD)[0, :, 0]
    by_hand = [
        [-mean / std, (1 - mean) / std] for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)
    ]
    torch.testing.assert_close(made, torch.tensor(by_hand), atol=1e-6, rtol=0)
    assert normalize(made, CLIP_MEAN, CLIP_STD) is made
