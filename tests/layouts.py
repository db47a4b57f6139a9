"""Small data sets in other people's layouts, for tests to convert."""

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from foveal.data.checking.check import check_file
from foveal.data.convert import Converted


def put_image(path: Path, shade: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade // 256, 90)).save(path)
    return path


def image_bytes(shade: int, kind: str = "PNG") -> bytes:
    content = BytesIO()
    Image.new("RGB", (12, 8), (shade, 0, 0)).save(content, kind)
    return content.getvalue()


def put_clip(path: Path, num_frames: int = 10) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(num_frames):
            pixels = numpy.full((32, 32, 3), 20 * number, numpy.uint8)
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        clip.mux(stream.encode())
    return path


def put_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def put_lines(path: Path, *values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def zip_folder(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return target


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def turns_of(path: Path) -> list[dict[str, Any]]:
    return [line["conversations"][0] for line in lines_of(path)]


def left_out(out: Path) -> dict[str, str]:
    rows = (out / "left_out.txt").read_text(encoding="utf-8").splitlines()
    return {Path(name).name: reason for name, reason in (row.split("\t") for row in rows)}


def assert_sound(converted: Converted) -> None:
    """Hold every file against the checks that a run makes."""
    for file in converted.files:
        assert list(check_file(file)) == []
