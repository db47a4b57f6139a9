"""A validation example is called a training example where it is one, and nowhere else."""

from pathlib import Path

import pytest
from layouts import put_lines
from PIL import Image
from words import WordProcessor

from foveal.data.checking.overlap import CHUNKS, LOOKED_AT, describe_overlap
from foveal.data.dataset import read_dataset

SIDE = 160  # a bitmap has as many bytes as any other of its size, and is not looked at whole


def bitmaps(folder: Path, places: list[int]) -> Path:
    """One question with one answer about bitmaps that differ in one pixel."""
    folder.mkdir()
    lines = []
    for number, place in enumerate(places):
        image = Image.new("RGB", (SIDE, SIDE))
        image.putpixel((0, place), (255, 0, 0))
        image.save(folder / f"{number}.bmp")
        asked = {"images": [f"{number}.bmp"], "user": "Is it?", "assistant": "Yes."}
        lines.append({"id": f"example-{number}", "conversations": [asked]})
    return put_lines(folder / "data.jsonl", *lines)


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ([3, 80, 159], ""),
        ([80, 0, 158], "2 of 3 validation examples are training examples too, such as example-1"),
    ],
)
def test_pictures_of_as_many_bytes_are_one_where_their_bytes_are(tmp_path, validation, said):
    learnt = bitmaps(tmp_path / "train", [0, 1, 158])
    held_out = bitmaps(tmp_path / "validation", validation)
    assert (tmp_path / "train" / "0.bmp").stat().st_size > CHUNKS * LOOKED_AT
    found = [read_dataset(file, WordProcessor())[1] for file in (learnt, held_out)]
    told = describe_overlap(*found)
    assert told.startswith(said)
    assert bool(told) == bool(said)
