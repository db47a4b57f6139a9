"""Writes small data sets as the hub has them: Parquet files with its columns, and clips."""

from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet


def image(seed: int, size: tuple[int, int] = (56, 40)) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def put_pages(folder: Path, train: int = 4, test: int = 2) -> Path:
    """The columns of nielsr/docvqa_1200_examples."""
    for split, count in (("train", train), ("test", test)):
        rows = [
            {
                "id": f"{split}_{number}",
                "image": image(number if split == "train" else 1000 + number),
                "query": {"de": f"Was ist {number}?", "en": f"What is {number}?"},
                "answers": [f"Nr {number}", f"nr. {number}"],
                "words": ["x"],
                "bounding_boxes": [[0, 0, 1, 1]],
                "answer": None,
            }
            for number in range(count)
        ]
        put_rows(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    return folder


def put_cauldron(
    folder: Path, rows: int, answers: tuple[str, ...], images: int = 1, texts: int = 1
) -> Path:
    """The columns of a part of HuggingFaceM4/the_cauldron."""
    made = [
        {
            "images": [image(100 * row + number) for number in range(images)],
            "texts": [
                {
                    "user": f"Is it {number} of {row}?",
                    "assistant": answers[(row + number) % len(answers)],
                    "source": "x",
                }
                for number in range(texts)
            ],
        }
        for row in range(rows)
    ]
    put_rows(folder / "train-00000-of-00001-0123456789abcdef.parquet", made)
    return folder


def put_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def put_clips(folder: Path, clips: int = 2) -> Path:
    """The layout of sayakpaul/ucf101-subset: `<split>/<class>/<clip>.avi`."""
    for number, split in enumerate(("train", "val", "test"), start=1):
        for seed, label in enumerate(("ApplyEyeMakeup", "Archery")):
            for clip in range(clips):
                name = f"v_{label}_g0{clip + 1}_c0{number}.avi"
                put_clip(folder / split / label / name, 10 * seed + clip)
    return folder


def put_clip(path: Path, seed: int, frames: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            shade = np.full((48, 64, 3), (20 * number + 7 * seed) % 256, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
