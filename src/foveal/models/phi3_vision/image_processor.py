"""Pictures -> the published processor's crops, sizes and token counts."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from foveal.data.images.media import Picture, naming, open_picture
from foveal.models.phi3_vision.image import (
    CLIP_MEAN,
    CLIP_STD,
    crop_grid,
    cut_crops,
    global_view,
    normalize,
    num_image_tokens,
)

PUBLISHED_CROP_SIZE = 336
PUBLISHED_TOKENS_SIDE = 12


class Phi3VImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Cuts pictures into crops, each picture's global view first; no padding crops."""

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

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images: Picture | Sequence[Picture],
        num_crops: int | None = None,
        return_tensors: str | None = "pt",
        **neutral: Any,
    ) -> BatchFeature:
        """Turn pictures into the model's inputs.

        Args:
            images: Pillow pictures, paths, or the bytes of files.
            num_crops: most crops a picture; none: as configured.
            return_tensors: "pt", or "np".
            neutral: options of other processors, as long as they ask for nothing.

        Returns:
            pixel_values: (crops, 3, size, size), float32, normalised.
            image_sizes: (images, 2), height and width after the HD transform, pixels.
            num_img_tokens: tokens of each picture.

        Raises:
            DataError: a picture cannot be read, or is too elongated.
            TypeError: an option that we do not honour.
        """
        refuse_others(neutral)
        pictures = [images] if isinstance(images, Picture) else images
        views, sizes, tokens = [], [], []
        for number, picture in enumerate(pictures, start=1):
            image = as_rgb(picture, number)
            with naming(name_of(picture, number)):
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

    def num_tokens(self, width: int, height: int, num_crops: int | None = None) -> int:
        """Count the tokens of a picture from its size alone."""
        grid = crop_grid(width, height, num_crops or self.num_crops, self.crop_size)
        return num_image_tokens(grid.rows, grid.columns, int(self.num_img_tokens**0.5))


def as_rgb(picture: Picture, number: int) -> Image.Image:
    """Open a picture, however it is given, as RGB and upright; an error names it or its number.

    Raises:
        DataError: the picture cannot be read.
        ValueError: it is none.
    """
    if not isinstance(picture, Picture):
        kind = type(picture).__name__
        raise ValueError(f"a picture is a Pillow image or a path, not {kind}")
    return open_picture(picture, name_of(picture, number))


def name_of(picture: Picture, number: int) -> str:
    """Name a picture in an error."""
    return str(picture) if isinstance(picture, str | Path) else f"picture {number}"


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
