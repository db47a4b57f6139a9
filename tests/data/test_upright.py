"""A picture is upright RGB, and the same pixels, however it is given."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from foveal.data.images.media import image_size, load_image
from foveal.errors import DataError

ON_ITS_SIDE = 6
"""EXIF's word for: the first row of the file is the right side of the picture."""


def lying(path, size=(24, 16)):
    """Write a picture that is red at its upper left, and is to be turned to the right."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = ON_ITS_SIDE
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["jpg", "tiff", "png", "webp", "avif"])
def test_a_picture_on_its_side_is_turned_once_by_every_way(tmp_path, kind):
    path = lying(tmp_path / f"lying.{kind}")
    with Image.open(path) as unread, Image.open(path) as read:
        read.load()
        given = [path, str(path), path.read_bytes(), unread, read, read.copy()]
        opened = [load_image(one, "it") for one in given]
    assert image_size(path) == (16, 24)
    assert {one.size for one in opened} == {(16, 24)}
    assert len({one.tobytes() for one in opened}) == 1
    upper_right, upper_left = opened[0].getpixel((14, 1)), opened[0].getpixel((1, 1))
    assert upper_right[0] > 200 > 100 > upper_right[2], "what lay at the upper left"
    assert upper_left[2] > 200 > 100 > upper_left[0]
    assert load_image(opened[0], "it").tobytes() == opened[0].tobytes(), "turned once"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_a_picture_of_any_mode_gives_the_same_pixels_by_every_way(tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    image = Image.fromarray(values, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode != "RGBA":
        image = image.convert("LA" if mode == "LA" else "L" if mode in "1PF" else "RGB").convert(
            mode
        )
    path = tmp_path / "it.tiff"
    image.save(path)
    opened = [load_image(one, "it") for one in (path, path.read_bytes(), image)]
    assert {one.mode for one in opened} == {"RGB"}
    assert len({one.tobytes() for one in opened}) == 1


def test_an_alpha_channel_is_dropped_by_every_way(tmp_path):
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    path = tmp_path / "clear.png"
    image.save(path)
    for given in (image, path, path.read_bytes()):
        assert load_image(given, "it").getpixel((0, 0)) == (10, 20, 30)


def test_what_is_no_picture_is_refused_in_a_sentence():
    with pytest.raises(DataError, match=r"^it: 0x5 has no pixels; replace it$"):
        load_image(Image.new("RGB", (0, 5)), "it")
    with pytest.raises(DataError, match=r"^it: broken picture"):
        load_image(Image.new("La", (4, 4)), "it")
    with pytest.raises(DataError, match=r"^it: give a path, a Pillow image or bytes, not NoneType"):
        load_image(None, "it")
