"""A model folder -> its own processor, as a recipe sets it; one that looks at sizes alone."""

import inspect
from collections.abc import Mapping
from copy import copy
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from foveal.errors import ModelError, one_line

OF_A_CALL = {"data_format", "device", "disable_grouping", "input_data_format", "return_tensors"}
"""Say in which form tensors come, not how an image is read."""

PROBE_SIZES = ((200, 90), (90, 400), (1300, 1000))


def load_hub_processor(name: str) -> Any:
    """Load a model's processor; without torchvision, that of a family with clips as well."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.utils import is_torchvision_available

    try:
        return AutoProcessor.from_pretrained(name)
    except (ImportError, ValueError, RecursionError):  # the last: a clip reader that seeks itself
        if is_torchvision_available():
            raise
        found = _processor_class(name)
        missing = _needed(found)
        if not missing:
            raise
        # Its clips need torchvision, and so all of it is refused: taken apart, images do not.
        settings, _ = found.get_processor_dict(name)
        known = set(inspect.signature(found.__init__).parameters) - {"self", "kwargs", *missing}
        own = {key: one for key, one in settings.items() if key in known}
        own["image_processor"] = AutoImageProcessor.from_pretrained(name, backend="pil")
        own["tokenizer"] = AutoTokenizer.from_pretrained(name)
        return _make_without(found, missing, own)


def _needed(processor_class: Any) -> list[str]:
    """Name what a processor must be given: beside words and images, what reads clips and sounds."""
    parameters = inspect.signature(processor_class.__init__).parameters
    return [
        name
        for name in parameters
        if name.endswith(("video_processor", "feature_extractor", "audio_processor"))
    ]


def _make_without(processor_class: Any, missing: list[str], own: dict[str, Any]) -> Any:
    class Lenient(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    made = Lenient(**dict.fromkeys(missing), **own)
    made.__class__ = processor_class  # which processes beside this one find by its name
    return made


def _processor_class(name: str) -> Any:
    import transformers
    from transformers import AutoConfig, ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    stated = ProcessorMixin.get_processor_dict(name)[0].get("processor_class")
    model_type = AutoConfig.from_pretrained(name).model_type
    return getattr(transformers, stated or PROCESSOR_MAPPING_NAMES.get(model_type, ""))


# -- as a recipe sets it ---------------------------------------------------------------------------


def set_images(name: str, processor: Any, settings: Mapping[str, Any]) -> None:
    """Let a processor read images by other settings.

    Args:
        name: of the model.
        processor: of transformers; its image processor is replaced.
        settings: by the image processor's own names.

    Raises:
        ModelError: it has no such setting, refuses its value, or heeds it only where it is called,
            so that no folder can hold it.
    """
    kind = type(processor.image_processor)
    known = set(kind.valid_kwargs.__annotations__) - OF_A_CALL
    if unknown := sorted(settings.keys() - known):
        raise ModelError(
            f"data.image_settings: {', '.join(unknown)} is no setting of {kind.__name__} of model "
            f"{name}; it has {', '.join(sorted(known))}"
        )
    try:
        asked = [_looked_at(processor, size, settings) for size in PROBE_SIZES]
        processor.image_processor = kind.from_pretrained(name, **settings)
        given = [_looked_at(processor, size, {}) for size in PROBE_SIZES]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = one_line(error, 200)
        raise ModelError(
            f"data.image_settings: {kind.__name__} of model {name} cannot read images with "
            f"{dict(settings)}: {reason}"
        ) from error
    if not all(map(np.array_equal, asked, given)):
        raise ModelError(
            f"data.image_settings: the processor of model {name} heeds {', '.join(settings)} only "
            "where it is called, so no folder could hold it; leave it out"
        )


def _looked_at(processor: Any, size: tuple[int, int], settings: Mapping[str, Any]) -> Any:
    image = Image.effect_noise(size, 60).convert("RGB")
    made = processor(
        text=[processor.image_token], images=[[image]], return_tensors="pt", images_kwargs=settings
    )
    return np.asarray([*made["pixel_values"].shape, *made["input_ids"][0].tolist()])


def changed_settings(processor: Any, name: str) -> dict[str, Any]:
    """Say which settings of a processor's images are others than a model's files have."""
    now = processor.image_processor.to_dict()
    before = type(processor.image_processor).from_pretrained(name).to_dict()
    return {key: one for key, one in now.items() if before.get(key) != one}


# -- sizes alone -----------------------------------------------------------------------------------


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
    """Copy a processor of transformers into one that looks at sizes and never at a pixel.

    All that it works out it works out as before: only what it hands the pixels to is left out. An
    array of one zero that counts for all takes no memory, however large the image.
    """
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
