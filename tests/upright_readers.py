"""Readers of photos and clips -> whether each turns what lies on its side upright."""

import contextlib
import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy
from PIL import ExifTags, Image

PACKAGES = (
    "pillow==13.0.0",
    "av==18.1.0",
    "numpy==2.4.6",
    "transformers==5.23.0",
    "datasets==5.2.0",
    "opencv-python-headless==5.0.0.93",
    "imageio==2.38.1",
    "webdataset==1.0.2",
    "decord2==3.4.0",
)
"""What `.ci/write_upright` installs; pytest looks at those that are there in the same version."""

BY_SOURCE = (
    ("mlx-vlm 0.7.10", "load_image in mlx_vlm/utils.py", "yes"),
    ("qwen-vl-utils 0.0.14", "fetch_image in vision_process.py", "no"),
    ("SGLang 0.5.23", "but for models with smart_rgb_conversion; base_processor.py", "no"),
    ("torchvision 0.29.1", "decode_image in io/image.py, unless apply_exif_orientation=True", "no"),
    ("vLLM 0.33.0", "ImageMediaIO in vllm/multimodal/media/image.py", "yes"),
)
"""What was read and not run: readers, where, whether EXIF turns a photo."""

ENDINGS = ("jpg", "png", "avif", "tif", "mp4")
_WIDTH, _HEIGHT = 64, 32


def _with_pillow(path: Path) -> Any:
    return Image.open(path).convert("RGB")


def _with_transformers(path: Path) -> Any:
    from transformers.image_utils import load_image

    return load_image(str(path))


def _with_datasets(path: Path) -> Any:
    import datasets

    return datasets.Image().decode_example({"path": str(path), "bytes": None}).convert("RGB")


def _with_opencv(path: Path) -> Any:
    import cv2

    if path.suffix == ".mp4":
        return cv2.VideoCapture(str(path)).read()[1]
    return cv2.imread(str(path))[..., ::-1]


def _with_imageio(path: Path) -> Any:
    import imageio.v3

    return imageio.v3.imread(path)


def _with_webdataset(path: Path) -> Any:
    import webdataset

    return webdataset.autodecode.imagehandler("pilrgb")(path.suffix[1:], path.read_bytes())


def _with_pyav(path: Path) -> Any:
    with av.open(str(path)) as clip:
        return next(clip.decode(video=0)).to_ndarray(format="rgb24")


def _with_decord(path: Path) -> Any:
    import decord

    return decord.VideoReader(str(path))[0].asnumpy()


READERS: dict[str, tuple[str, str, Callable[[Path], Any], tuple[str, ...]]] = {
    "Pillow": ("pillow", "`Image.open`", _with_pillow, ENDINGS[:4]),
    "transformers": (
        "transformers",
        "a path; a Pillow image stays",
        _with_transformers,
        ENDINGS[:4],
    ),
    "datasets": ("datasets", "`Image()`", _with_datasets, ENDINGS[:4]),
    "OpenCV": ("opencv-python-headless", "`imread`, `VideoCapture`", _with_opencv, ENDINGS),
    "imageio": ("imageio", "`v3.imread`", _with_imageio, ENDINGS[:4]),
    "WebDataset": ("webdataset", '`decode("pil")`', _with_webdataset, ("jpg", "png", "tif")),
    "PyAV": ("av", "`decode`; frames tell their `rotation`", _with_pyav, ("mp4",)),
    "decord2": ("decord2", "`VideoReader`", _with_decord, ("mp4",)),
}
"""Name -> its package, how it reads, the function, and the kinds of files that it is for."""


def write_lying(folder: Path) -> None:
    """Write a photo of each kind and a clip, turned by a quarter, that say so as cameras do."""
    upright = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    upright.paste("red", (0, 0, _WIDTH // 2, _HEIGHT // 2))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for ending in ENDINGS[:4]:  # bytes, since Pillow's AVIF takes the orientation out of an Exif
        lying.save(folder / f"lying.{ending}", exif=exif.tobytes())
    path = folder / "lying.mp4"
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = _HEIGHT, _WIDTH, "yuv420p"
        clip.mux([*stream.encode(av.VideoFrame.from_image(lying)), *stream.encode()])
    content, one = bytearray(path.read_bytes()), 1 << 16
    matrix = (0, one, 0, -one, 0, 0, _WIDTH * one, 0, 1 << 30)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, *matrix)
    path.write_bytes(content)


def turns(name: str, folder: Path) -> list[str]:
    """Tell what a reader makes of each kind of file: yes, no, refused, or nothing it is for."""
    _, _, read, endings = READERS[name]
    found = []
    for ending in ENDINGS:
        answer = "" if ending not in endings else "refused"
        with contextlib.suppress(Exception):  # a reader raises what it likes
            if ending in endings:
                answer = "yes" if _is_upright(read(folder / f"lying.{ending}")) else "no"
        found.append(answer)
    return found


def row(name: str, folder: Path) -> str:
    """Write a reader's line of the table."""
    package, how, _, _ = READERS[name]
    return f"| {name} {version(package)}, {how} | " + " | ".join(turns(name, folder)) + " |"


def _is_upright(pixels: Any) -> bool:
    seen = numpy.asarray(pixels)
    return seen.shape[:2] == (_HEIGHT, _WIDTH) and bool(seen[4, 4].min() < 100 < seen[-4, -4].min())
