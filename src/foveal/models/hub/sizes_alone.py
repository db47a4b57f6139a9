"""A model's processor -> the same one, which looks at the sizes of images and never at a pixel.

All that it works out it works out as before: only what it hands the pixels to is left out. An array
of one zero that counts for all takes no memory, however large the image.
"""

from copy import copy
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend


def _zeros(height: int, width: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.uint8(0), (3, height, width))


class PillowSizes(PilBackend):  # type: ignore[misc]
    """What stands behind a processor's own class instead of Pillow."""

    # The backend's own way to work out a size, which then asks this module for the pixels.
    resize = FunctionType(
        PilBackend.resize.__code__,
        PilBackend.resize.__globals__ | {"np_resize": lambda _, size, **__: _zeros(*size)},
        argdefs=PilBackend.resize.__defaults__,
    )

    def process_image(self, image: Image.Image, **_: Any) -> NDArray[np.uint8]:
        """Take an image's size, (3, height, width)."""
        return _zeros(image.height, image.width)

    def rescale(self, image: Any, *_: Any, **__: Any) -> Any:
        """Leave an image as it is."""
        return image

    normalize = rescale


class TorchvisionSizes(TorchvisionBackend):  # type: ignore[misc]
    """The same for torchvision, which resizes images of no colours by their sizes alone."""

    def process_image(self, image: Image.Image, **_: Any) -> torch.Tensor:
        """Take an image's size, (0, height, width)."""
        return torch.zeros(0, image.height, image.width, dtype=torch.uint8)

    def rescale_and_normalize(self, images: Any, *_: Any, **__: Any) -> Any:
        """Leave images as they are."""
        return images

    rescale = normalize = rescale_and_normalize


def without_pixels(processor: Any) -> Any:
    """Copy a processor of transformers into one that is asked for sizes alone."""
    images = copy(processor.image_processor)
    kind = type(images)
    backend = PillowSizes if isinstance(images, PilBackend) else TorchvisionSizes
    body: dict[str, Any] = {}
    if hasattr(kind, "patchify"):  # lays pixels out by patches, and copies all

        def patchify(self: Any, image: Any, *arguments: Any, **options: Any) -> Any:
            return kind.patchify(self, image[..., :0, :, :], *arguments, **options)

        body["patchify"] = patchify
    images.__class__ = type(kind.__name__, (kind, backend), body)
    sizes = copy(processor)
    sizes.image_processor = images
    return sizes
