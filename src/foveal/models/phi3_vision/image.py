"""An image -> square crops, and how many tokens it costs (the published "HD transform").

Sizes are pure arithmetic: a run is planned from image headers alone. The global view is not stored:
it is worked out from the crops where the model runs, so that images travel as bytes.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from foveal.data.images.media import ImageInput, load_image, naming
from foveal.errors import DataError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PUBLISHED_CROP_SIZE = 336
PUBLISHED_TOKENS_SIDE = 12

WHITE = 255
"""What an image is padded with."""

PROBE = (32, 32)
"""Pixels of an image that are looked at for colour before all are."""


@dataclass(frozen=True)
class CropGrid:
    """How an image is cut: resized to `resized`, padded with white to whole crops."""

    rows: int
    columns: int
    resized: tuple[int, int]
    """(width, height) before padding, pixels."""

    crop_size: int

    @property
    def width(self) -> int:
        """Pixels after padding."""
        return self.columns * self.crop_size

    @property
    def height(self) -> int:
        """Pixels after padding."""
        return self.rows * self.crop_size


def crop_grid(width: int, height: int, num_crops: int, crop_size: int = 336) -> CropGrid:
    """Choose the largest grid of at most `num_crops` crops that keeps the image's shape.

    Source: `HD_transform` of the published `image_processing_phi3_v.py`.

    Raises:
        DataError: the image is so elongated that no pixel would be left of its short side.
    """
    ratio = max(width, height) / min(width, height)
    long_crops = 1
    while (long_crops + 1) * math.ceil((long_crops + 1) / ratio) <= num_crops:
        long_crops += 1
    long_side = long_crops * crop_size
    short_side = int(long_side / ratio)
    if short_side < 1:
        raise DataError(
            f"a picture of {width} x {height} pixels is too elongated for {num_crops} crops; "
            "cut it, or allow more crops"
        )
    short_crops = math.ceil(short_side / crop_size)
    if width >= height:
        return CropGrid(short_crops, long_crops, (long_side, short_side), crop_size)
    return CropGrid(long_crops, short_crops, (short_side, long_side), crop_size)


def num_image_tokens(rows: int, columns: int, crop_tokens_side: int = 12) -> int:
    """Count the tokens of an image of rows x columns crops.

    Own crops and global view, each row of merged patches ended by a separator, and one separator
    between the two. Source: `calc_num_image_tokens` of the published image processor.

    Args:
        rows: crops from top to bottom.
        columns: crops from left to right.
        crop_tokens_side: merged patches along one side of a crop (336 / 14 / 2).
    """
    side = crop_tokens_side
    own = rows * side * (columns * side + 1)
    overview = side * (side + 1)
    return own + 1 + overview


def cut_crops(image: Image.Image, num_crops: int, crop_size: int = 336) -> Tensor:
    """Resize, pad and cut an image.

    Returns:
        (rows * columns, 3, crop_size, crop_size), uint8, row by row.

    Raises:
        DataError: see `crop_grid`.
    """
    size = crop_size
    grid = crop_grid(image.width, image.height, num_crops, size)
    resized = resize_lying(without_colour(image), grid.resized)
    left, top = (grid.width - resized.width) // 2, (grid.height - resized.height) // 2
    page = np.full((grid.height, grid.width), WHITE, np.uint8)  # of one colour; the margins stay
    inside = page[top : top + resized.height, left : left + resized.width]
    lines = page.reshape(grid.rows, size, grid.columns, size).swapaxes(1, 2)
    crops = np.empty((grid.rows, grid.columns, 3, size, size), np.uint8)
    # Colour by colour: runs of a crop's width are copied instead of single bytes.
    for channel, band in enumerate("RGB" if resized.mode == "RGB" else "LLL"):
        inside[:] = np.frombuffer(resized.tobytes("raw", band), np.uint8).reshape(inside.shape)
        crops[:, :, channel] = lines
    return torch.from_numpy(crops).flatten(0, 1)


def resize_lying(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize as the published code does, a tall image as if it lay on its side."""
    # Pillow resizes rows before columns and rounds to bytes between. The published code turns a
    # tall image on its side first: there, columns come before rows.
    if image.width < image.height:
        image = image.resize((image.width, size[1]), Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


def without_colour(image: Image.Image) -> Image.Image:
    """Keep one band of an RGB image whose three are equal, as a scanned page's are."""
    # A few pixels tell most photographs apart before all are compared.
    for seen in (image.resize(PROBE, Image.Resampling.NEAREST), image):
        red, green, blue = seen.split()
        if not red.tobytes() == green.tobytes() == blue.tobytes():
            return image
    return red


def normalize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn bytes into the tower's numbers; float pixels are taken as normalised already.

    Args:
        pixels: (crops, 3, height, width), uint8 or float.
        mean: of each colour, in 0..1.
        std: of each colour, in 0..1.
    """
    if pixels.dtype != torch.uint8:
        return pixels
    centre = torch.tensor(mean, device=pixels.device)[:, None, None]
    spread = torch.tensor(std, device=pixels.device)[:, None, None]
    return (pixels.to(torch.float32) / 255 - centre) / spread


def global_view(crops: Tensor, rows: int, columns: int) -> Tensor:
    """Shrink a whole image to one crop.

    Bicubic, without antialiasing, on normalised pixels, as the published processor does. An image
    of a single crop is its own global view, bit for bit.

    Args:
        crops: (rows * columns, 3, size, size), float, normalised.
        rows: crops from top to bottom.
        columns: crops from left to right.

    Returns:
        (1, 3, size, size), float.
    """
    size = crops.shape[-1]
    whole = crops.view(rows, columns, 3, size, size).permute(2, 0, 3, 1, 4)
    whole = whole.reshape(1, 3, rows * size, columns * size)
    return F.interpolate(whole, size=(size, size), mode="bicubic")


# -- images, as transformers' users give them ----------------------------------------------------


class Phi3VImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Cuts images into crops, each image's global view first; no padding crops."""

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012

    def __init__(
        self,
        num_crops: int = 16,
        crop_size: int = PUBLISHED_CROP_SIZE,
        num_img_tokens: int = PUBLISHED_TOKENS_SIDE**2,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.num_img_tokens = num_img_tokens
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(
        self,
        images: ImageInput | Sequence[ImageInput],
        num_crops: int | None = None,
        return_tensors: str | None = "pt",
        **neutral: Any,
    ) -> BatchFeature:
        """Turn images into the model's inputs.

        Args:
            images: Pillow images, paths, or the bytes of files.
            num_crops: most crops an image; none: as configured.
            return_tensors: "pt", or "np".
            neutral: options of other processors, as long as they ask for nothing.

        Returns:
            pixel_values: (crops, 3, size, size), float32, normalised.
            image_sizes: (images, 2), height and width after the HD transform, pixels.
            num_img_tokens: tokens of each image.

        Raises:
            DataError: an image cannot be read, or is too elongated.
            TypeError: an option that we do not honour.
        """
        refuse_others(neutral)
        inputs = [images] if isinstance(images, ImageInput) else images
        views, sizes, tokens = [], [], []
        for number, given in enumerate(inputs, start=1):
            image = as_rgb(given, number)
            with naming(name_of(given, number)):
                grid = crop_grid(*image.size, num_crops or self.num_crops, self.crop_size)
            own = normalize(
                cut_crops(image, num_crops or self.num_crops, self.crop_size),
                tuple(self.image_mean),
                tuple(self.image_std),
            )
            views += [global_view(own, grid.rows, grid.columns), own]
            sizes.append((grid.height, grid.width))
            tokens.append(self.num_tokens(image.width, image.height, num_crops))
        made = {
            "pixel_values": torch.cat(views),
            "image_sizes": torch.tensor(sizes),
            "num_img_tokens": tokens,
        }
        return as_tensors(made, return_tensors)

    @property
    def tokens_side(self) -> int:
        """Merged patches along one side of a crop."""
        return int(self.num_img_tokens**0.5)

    def num_tokens(self, width: int, height: int, num_crops: int | None = None) -> int:
        """Count the tokens of an image from its size alone."""
        grid = crop_grid(width, height, num_crops or self.num_crops, self.crop_size)
        return num_image_tokens(grid.rows, grid.columns, self.tokens_side)


def as_rgb(given: ImageInput, number: int) -> Image.Image:
    """Open an image, however it is given, as RGB and upright; an error names it or its number.

    Raises:
        DataError: the image cannot be read.
        ValueError: it is none.
    """
    if not isinstance(given, ImageInput):
        kind = type(given).__name__
        raise ValueError(f"a picture is a Pillow image or a path, not {kind}")
    return load_image(given, name_of(given, number))


def name_of(given: ImageInput, number: int) -> str:
    """Name an image in an error."""
    return str(given) if isinstance(given, str | Path) else f"picture {number}"


def as_tensors(made: Mapping[str, Any], kind: str | None) -> BatchFeature:
    """Give what was made as PyTorch's tensors, or NumPy's.

    Raises:
        ValueError: as others.
    """
    if kind not in (None, "pt", "np"):
        raise ValueError(f"return_tensors={kind!r}: give pt or np")
    as_numpy = kind == "np"
    return BatchFeature(
        {
            name: one.numpy() if as_numpy and isinstance(one, Tensor) else one
            for name, one in made.items()
        }
    )


def refuse_others(options: Mapping[str, Any], honoured: Collection[str] = ()) -> None:
    """Refuse options that we do not know, unless they ask for nothing.

    Raises:
        TypeError: one asks for what we would not do.
    """
    for name, value in options.items():
        if name not in honoured and value is not None and value is not False:
            raise TypeError(
                f"{name}={value!r} is not an option here, and passing it over is unsafe"
            )
