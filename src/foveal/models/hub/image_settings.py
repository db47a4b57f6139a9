"""A recipe's settings of images + a model's processor -> the processor that obeys them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from foveal.errors import ModelError

ImageBudget = int | Mapping[str, Any] | None
"""Most crops; or settings by the names of the model's own processor; none: as its files say."""

OF_A_CALL = {"data_format", "device", "disable_grouping", "input_data_format", "return_tensors"}
"""Say in which form tensors come, not how an image is read."""

PROBE_SIZES = ((200, 90), (90, 400), (1300, 1000))


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
        reason = " ".join(str(error).split())[:200]
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
