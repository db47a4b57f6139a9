"""Whatever bytes come in, readers end in a value or in an error that a person can mend."""

import json
from collections.abc import Callable
from functools import cache
from io import BytesIO

import pytest
from daily import daily
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.data.checking.check import check_file
from foveal.data.example import Example, read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_size, load_image
from foveal.data.lines import Examples
from foveal.errors import UserError

INPUTS = 20_000
"""Of each kind; the quick tests take half a hundredth."""

LINE = json.dumps(
    {
        "id": "é",
        "source": "s",
        "conversations": [
            {
                "images": ["a.png", "b/c.jpg"],
                "user": "<|image_1|> or <|image_2|>?",
                "assistant": "1",
            },
            {"user": "And?", "assistant": "2", "answers": ["2", "two"], "choices": ["1", "2"]},
        ],
    }
).encode()

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
turns = st.fixed_dictionaries(
    {"user": st.text() | anything, "assistant": st.text() | anything},
    optional={"images": st.lists(st.text()) | anything, "choices": st.lists(st.text()) | anything},
)
examples = st.fixed_dictionaries({"id": st.text(), "conversations": st.lists(turns) | anything})


@st.composite
def changed(draw: Callable, wholes: st.SearchStrategy[bytes]) -> bytes:
    """Draw sound bytes with some of them replaced, put in or cut off."""
    content = bytearray(draw(wholes))
    for place, length, new in draw(
        st.lists(
            st.tuples(st.integers(0, len(content)), st.integers(0, 8), st.binary(max_size=8)),
            max_size=6,
        )
    ):
        content[place : place + length] = new
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


lines = st.binary() | changed(st.just(LINE)) | (examples | anything).map(json.dumps).map(str.encode)


@cache
def images() -> list[bytes]:
    """Make a small picture of each kind that is opened, upright and turned."""
    gradient = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    made = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"):
        for extra in ({}, {"exif": turned}):
            if not extra or kind in ("JPEG", "PNG", "WEBP", "TIFF"):
                file = BytesIO()
                gradient.save(file, kind, **extra)
                made.append(file.getvalue())
    return made


def try_lines(folder, content: bytes) -> None:
    """Read a file by each of the ways that a run or a check has."""
    path = folder / "data.jsonl"
    path.write_bytes(content)
    try:
        for example in read_examples(path):
            assert isinstance(example, Example)
            for name in example.images:
                ImageFolder(path).find(name)
    except UserError:
        pass
    try:
        opened = Examples([path])
        assert all(isinstance(opened[place], Example) for place in range(len(opened)))
    except UserError:
        pass
    check = check_file(path)
    assert len(list(check)) == check.summary.problems


def try_image(content: bytes) -> None:
    """Open a picture, and measure it without."""
    for open_it in (load_image, image_size):
        try:
            opened = open_it(content, "fuzz")
            width, height = opened.size if isinstance(opened, Image.Image) else opened
            assert width > 0 < height
        except UserError:
            pass


@pytest.mark.parametrize("inputs", daily(INPUTS // 200, beside=[INPUTS]))
def test_any_lines_are_examples_or_refused(tmp_path, inputs):
    @settings(max_examples=inputs, deadline=None, derandomize=True, database=None)
    @given(st.lists(lines, max_size=3).map(b"\n".join))
    def read(content):
        try_lines(tmp_path, content)

    read()


@pytest.mark.parametrize("inputs", daily(INPUTS // 200, beside=[INPUTS]))
def test_any_bytes_are_a_picture_or_refused(inputs):
    @settings(max_examples=inputs, deadline=None, derandomize=True, database=None)
    @given(st.binary() | changed(st.sampled_from(images())))
    def open_it(content):
        try_image(content)

    open_it()
