"""What reading pictures promises: within limits, or refused in a sentence."""

import base64
import io
import zlib
from types import SimpleNamespace

import pytest
from PIL import Image

from foveal.serve import served
from foveal.serve.limits import RequestError, ServerLimits
from foveal.serve.sent_files import SentFile, measure_images, read_address
from foveal.serve.served import CutImages

LIMITS = ServerLimits(image_bytes=2000, images=3, pixels=10_000)


def drawn(size=(60, 40)):
    held = io.BytesIO()
    Image.new("RGB", size, (40, 90, 160)).save(held, "PNG")
    return held.getvalue()


def no_fetching(url):
    raise AssertionError("nothing is to be fetched")


def read(url):
    return read_address(url, "picture 1", False, limits=LIMITS, fetch=no_fetching)


def test_a_data_uri_is_the_bytes_it_holds():
    data = drawn()
    coded = base64.b64encode(data).decode()
    assert read(f"data:image/png;base64,{coded}").data == data
    assert read(f"DATA:;base64,{coded}").data == data


@pytest.mark.parametrize(
    ("url", "status", "why"),
    [
        ("data:image/png,abc", 400, "write the data URI as"),
        ("data:image/png;base64,@@@@", 400, "its base64 is broken"),
        ("data:image/png;base64,abc", 400, "its base64 is broken"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", 400, "its base64 is broken"),
        ("data:image/png;base64," + "A" * 4000, 413, "more than 2000 bytes"),
        ("file:///etc/passwd", 400, "begins with data: or https:, not 'file'"),
        ("ftp://host/a.png", 400, "not 'ftp'"),
        ("/etc/passwd", 400, "begins with data: or https:"),
        ("", 400, "begins with data: or https:"),
    ],
)
def test_an_address_that_is_not_allowed_is_refused(url, status, why):
    with pytest.raises(RequestError, match=why) as caught:
        read(url)
    assert caught.value.status == status


def test_a_web_address_is_handed_to_the_fetcher():
    made = read_address(
        "https://host/a.png", "picture 1", False, limits=LIMITS, fetch=lambda url: url.encode()
    )
    assert made.data == b"https://host/a.png"


def test_sizes_come_from_headers_and_add_up():
    files = [SentFile("a", drawn(size=(100, 50))), SentFile("b", drawn(size=(50, 50)))]
    assert measure_images(files, LIMITS) == [(100, 50), (50, 50)]
    with pytest.raises(RequestError, match="b: 50x50 takes the request to 12500 pixels") as caught:
        measure_images([*files[:1], *files], LIMITS)
    assert caught.value.status == 413


def png_that_claims(width, height):
    """A PNG of a few bytes whose header promises any size."""

    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize("side", [200, 20_000, 2_000_000])
def test_a_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(RequestError, match="pixels") as caught:
        measure_images([SentFile("bomb", png_that_claims(side, side))], LIMITS)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"no picture", "not a picture of a kind we open"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture of a kind we open"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(data, said):
    with pytest.raises(RequestError, match=f"picture 2: {said}") as caught:
        measure_images([SentFile("picture 2", data)], LIMITS)
    assert (caught.value.status, caught.value.code) == (400, "broken_picture")


def test_a_picture_cut_short_is_refused_in_a_sentence():
    held = io.BytesIO()
    Image.effect_noise((90, 90), 60).save(held, "PNG")
    short = SentFile("picture 1", held.getvalue()[:-2000])
    assert measure_images([short], LIMITS) == [(90, 90)]
    with pytest.raises(RequestError, match="picture 1: broken picture") as caught:
        short.decode()
    assert caught.value.status == 400


def test_the_latest_pictures_stay_cut_and_no_more(monkeypatch):
    monkeypatch.setattr(served, "REMEMBERED_IMAGES", 2)
    cut = []
    images = CutImages(SimpleNamespace(pixels=lambda image: cut.append(image.size) or {}))
    one, two, three = (SentFile("a", drawn(size=(side, 40))) for side in (1, 2, 3))
    for shown in (one, two, one, three, one, two):
        images.cut(shown)
    assert [width for width, _ in cut] == [1, 2, 3, 2]
