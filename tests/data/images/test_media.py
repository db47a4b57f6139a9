"""What opening pictures and clips promises."""

import json
import random
import struct
import threading
import warnings
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import numbered_clips
import numpy
import pytest
from PIL import Image

from foveal.data.images import clips, decoding
from foveal.data.images.clips import frame_indices, read_frames
from foveal.data.images.decoding import MAX_PIXELS
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import (
    image_identity,
    image_size,
    load_image,
    open_image,
    to_rgb,
)
from foveal.errors import DataError, UserError

GOLDEN = Path(__file__).parents[2] / "golden"
ORIENTATION = 0x0112


def synthetic(width: int, height: int, seed: int) -> Image.Image:
    """Build the golden images' pattern (tests/golden/README.md)."""
    x, y = numpy.meshgrid(numpy.arange(width), numpy.arange(height))
    red = 7 * x + 3 * y + 11 * seed
    green = x * y // 16 + 5 * x + 13 * seed
    blue = (x ^ y) * 5 + x * x // 64 + 29 * seed
    return Image.fromarray(numpy.stack([red, green, blue], axis=-1).astype(numpy.uint8))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def png_header(width: int, height: int) -> bytes:
    """Write a PNG that says how large it is and has next to no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def write_clip(
    path: Path, num_frames: int, size: tuple[int, int] = (64, 48), codec: str = "mpeg4"
) -> None:
    """Write a clip whose frame k is grey of brightness 20 + 3k."""
    import av

    with av.open(str(path), "w") as clip:
        stream = clip.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(num_frames):
            pixels = numpy.full((size[1], size[0], 3), 20 + 3 * number, numpy.uint8)
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        clip.mux(stream.encode())


def brightness(frame: Image.Image) -> float:
    return float(numpy.asarray(frame).mean())


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK", "RGB", "YCbCr", "F"])
def test_a_mode_of_eight_bits_becomes_rgb_as_pillow_makes_it(mode):
    image = synthetic(150, 90, 77).convert(mode)
    assert same(to_rgb(image), image.convert("RGB"))


def test_a_palette_with_a_transparency_for_each_colour_is_read_without_a_warning(tmp_path):
    image = synthetic(20, 10, 1).convert("P")
    expected = image.convert("RGB")
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert same(open_image(tmp_path / "palette.png"), expected)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path, ending):
    deep = numpy.array([[0, 255, 256, 32768, 65535]], numpy.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{ending}")
    rgb = numpy.asarray(open_image(tmp_path / f"deep.{ending}"))
    assert rgb[0, :, 0].tolist() == [0, 0, 1, 128, 255]  # the high byte
    assert (rgb == rgb[:, :, :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_picture_is_turned_upright_and_its_size_is_that_of_the_upright_picture(
    tmp_path, ending, orientation
):
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste("red", (0, 0, 20, 12))  # the upper left quarter
    # What a camera stores, so that the tag undoes it (EXIF 2.32, tag 274).
    flip = Image.Transpose
    stored = {
        1: upright,
        2: upright.transpose(flip.FLIP_LEFT_RIGHT),
        3: upright.transpose(flip.ROTATE_180),
        4: upright.transpose(flip.FLIP_TOP_BOTTOM),
        5: upright.transpose(flip.TRANSPOSE),
        6: upright.transpose(flip.ROTATE_90),
        7: upright.transpose(flip.TRANSVERSE),
        8: upright.transpose(flip.ROTATE_270),
    }[orientation]
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    path = tmp_path / f"turned.{ending}"
    stored.save(path, exif=tags)
    opened = open_image(path)
    assert opened.size == image_size(path) == (40, 24)
    pixels = numpy.asarray(opened).astype(int)
    assert pixels[6, 10, 1] < 60  # red
    assert pixels[18, 10, 1] > 200
    assert pixels[6, 30, 1] > 200


def test_the_first_frame_of_an_animated_picture_is_opened(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "moving.gif").getpixel((3, 3)) == (255, 0, 0)


def test_a_missing_file_an_empty_file_and_a_text_file_are_told_apart(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=r"missing\.png: No such file or directory; give"):
            read(tmp_path / "missing.png")
        with pytest.raises(DataError, match=r"empty\.png: an empty file"):
            read(tmp_path / "empty.png")
        with pytest.raises(DataError, match=r"text\.jpg: not a picture"):
            read(tmp_path / "text.jpg")
        with pytest.raises(DataError, match="Is a directory"):
            read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", "EPS", "ICO", "PCX"]
)
def test_kinds_that_could_run_or_fetch_something_or_are_seldom_tried_are_refused(tmp_path, content):
    path = tmp_path / "a.png"
    if isinstance(content, str):  # a sound one, which Pillow would open
        synthetic(16, 16, 1).save(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="a kind we open"):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page, not a picture; fetch"),
        (b"<HTML>", "a web page"),
        (
            b"<?xml version='1.0'?>" + b" " * 99 + b"<svg/>",
            "an SVG drawing; draw it as a kind we open",
        ),
        (b"%PDF-1.7\n", "a PDF; draw its pages"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture; save it"),
        (b"8BPS\0\1", "a Photoshop file; save it"),
        (b"no picture", "a kind we open .*; save it as one of them"),
    ],
)
def test_what_often_stands_where_a_picture_should_is_named(tmp_path, content, said):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "pages.zip", "w") as archive:
        archive.write(path, "a.jpg")
    packed = ImageFolder(tmp_path / "data.jsonl").find("pages.zip/a.jpg")
    for source in (path, content, packed):
        with pytest.raises(DataError, match=said) as refused:
            load_image(source, "picture 1")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_a_truncated_picture_is_refused_in_one_line(tmp_path, ending):
    path = tmp_path / f"whole.{ending}"
    synthetic(200, 150, 3).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"whole.*broken picture") as error:
        open_image(path)
    assert "\n" not in str(error.value)


def test_a_picture_of_3600_million_pixels_is_refused_from_its_header(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=f"more than {MAX_PIXELS} pixels"):
            read(path)


def test_the_limit_is_ours_and_holds_where_pillows_own_is_switched_off(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(MAX_PIXELS + 1, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match=f"{MAX_PIXELS + 1}x1 is more than {MAX_PIXELS} pixels"):
        image_size(path)
    path.write_bytes(png_header(MAX_PIXELS, 1))
    assert image_size(path) == (MAX_PIXELS, 1)


def test_a_large_picture_below_the_limit_is_sized_without_pillows_bomb_warning(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(13_000, 13_000))  # Pillow warns from 89,478,485 pixels on
    assert image_size(path) == (13_000, 13_000)


def test_warning_filters_are_as_before_when_threads_open_pictures_side_by_side(tmp_path):
    path = tmp_path / "picture.png"
    synthetic(300, 300, 1).save(path)
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [open_image(path) for _ in range(20)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_frames_are_spread_as_the_published_recipe_spreads_them():
    cases = json.loads((GOLDEN / "metrics" / "metrics.json").read_text())["video_frame_indices"]
    assert len(cases) == 12
    for case in cases:
        assert frame_indices(case["total_frames"], case["num_images"]) == case["indices"]


@pytest.mark.parametrize(("total", "number"), [(0, 8), (-1, 8), (5, 0)])
def test_no_frames_cannot_be_spread(total, number):
    with pytest.raises(ValueError, match="no frames to take"):
        frame_indices(total, number)


@pytest.mark.parametrize("total", [1, 5, 8, 40])
def test_the_frames_of_a_clip_are_the_ones_their_indices_name(tmp_path, total):
    write_clip(tmp_path / "clip.avi", total)
    frames = read_frames(tmp_path / "clip.avi")
    assert len(frames) == 8
    assert all(frame.mode == "RGB" and frame.size == (64, 48) for frame in frames)
    expected = [20 + 3 * (k * total // 8) for k in range(8)]
    assert [brightness(frame) for frame in frames] == pytest.approx(expected, abs=2.9)


@pytest.mark.parametrize("claimed", [4, 400])
def test_frames_are_counted_by_decoding_where_the_header_lies(tmp_path, claimed):
    path = tmp_path / "clip.avi"
    write_clip(path, 40)
    content = bytearray(path.read_bytes())
    # The stream header's dwLength: 32 bytes into the body of `strh`.
    where = content.index(b"strh") + 8 + 32
    assert struct.unpack_from("<I", content, where) == (40,)
    struct.pack_into("<I", content, where, claimed)
    path.write_bytes(content)
    expected = [20 + 3 * (5 * k) for k in range(8)]
    assert [brightness(frame) for frame in read_frames(path)] == pytest.approx(expected, abs=2.9)


def test_eight_frames_of_224_stand_28_apart_whatever_the_header_says(tmp_path):
    path = tmp_path / "clip.avi"
    numbered_clips.write_clip(path, "mpeg4", range(0, 224 * 40, 40))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, 1000)
    path.write_bytes(content)
    shown = [numbered_clips.number_shown(frame) for frame in read_frames(path)]
    assert shown == [0, 28, 56, 84, 112, 140, 168, 196]


def test_a_clip_with_an_odd_name_is_read(tmp_path):
    path = tmp_path / "http:[a+b]! été.avi"
    write_clip(path, 8)
    assert len(read_frames(path, num_frames=3)) == 3


def test_broken_clips_are_refused_in_one_line(tmp_path):
    whole = tmp_path / "whole.mp4"
    write_clip(whole, 30)
    content = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) // 2])  # an mp4's table of contents is at its end
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.avi").write_text("no clip\n" * 100)
    for name, reason in [
        ("missing.avi", "No such file"),
        ("empty.avi", "broken clip"),
        ("text.avi", "broken clip"),
        ("cut.mp4", "broken clip"),
    ]:
        with pytest.raises(DataError, match=f"{name}: {reason}") as error:
            read_frames(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_playlist_cannot_make_us_read_another_file(tmp_path):
    write_clip(tmp_path / "secret.avi", 8)
    playlist = tmp_path / "playlist.avi"
    playlist.write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.avi'}\n")
    with pytest.raises(DataError, match="broken clip"):
        read_frames(playlist)


def test_a_sound_without_a_picture_is_no_clip(tmp_path):
    import av

    path = tmp_path / "sound.avi"
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 800), numpy.int16), "s16", "mono")
        frame.sample_rate = 8000
        clip.mux(stream.encode(frame))
        clip.mux(stream.encode())
    with pytest.raises(DataError, match="no moving picture"):
        read_frames(path)


def test_a_clip_that_is_too_long_or_too_large_is_refused(tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.avi", 12)
    monkeypatch.setattr(clips, "MAX_FRAMES", 11)
    with pytest.raises(DataError, match=r"clip\.avi: more than 11 frames; cut it"):
        read_frames(tmp_path / "clip.avi")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(DataError, match=r"clip\.avi: 64x48 is more than 3071 pixels"):
        read_frames(tmp_path / "clip.avi")


def test_the_identity_of_a_file_is_that_of_its_bytes(tmp_path):
    content = random.Random(0).randbytes(3_000_000)
    (tmp_path / "one").write_bytes(content)
    (tmp_path / "two").write_bytes(content)
    (tmp_path / "other").write_bytes(content[:-1] + b"\0")
    assert image_identity(tmp_path / "one") == sha256(content).hexdigest()
    assert image_identity(tmp_path / "one") == image_identity(tmp_path / "two")
    assert image_identity(tmp_path / "one") != image_identity(tmp_path / "other")
    with pytest.raises(DataError, match="No such file"):
        image_identity(tmp_path / "none")


def fuzz(tmp_path: Path, rounds: int) -> tuple[int, int]:
    """Open pictures with a few bytes changed; count those that opened and those refused."""
    draw, wholes = random.Random(7), []
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    for ending in ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm"):
        path = tmp_path / f"whole.{ending}"
        synthetic(24, 16, 5).save(
            path, **({} if ending in ("bmp", "ppm", "gif") else {"exif": tags})
        )
        wholes.append(path.read_bytes())
    opened = refused = 0
    for _ in range(rounds):
        content = bytearray(draw.choice(wholes))
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        try:
            image = load_image(bytes(content), "fuzz")
            assert image.mode == "RGB"
            opened += 1
        except UserError:
            refused += 1
    return opened, refused


def test_pictures_with_changed_bytes_open_or_are_refused(tmp_path):
    opened, refused = fuzz(tmp_path, 1_000)
    assert opened > 100
    assert refused > 100
