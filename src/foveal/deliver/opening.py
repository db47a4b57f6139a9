"""A run, a model folder, an adapter folder or a hub name -> a model to ask."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.adapt.adapters import merge_adapters
from foveal.deliver.place import find_model, find_num_crops
from foveal.errors import ModelError
from foveal.models.family import LoadedModel, load

ADAPTER_CONFIG = "adapter_config.json"


def open_model(place: str, num_crops: int | None = None, dtype: Any = None) -> LoadedModel:
    """Load what people point at; an adapter is folded into the base that it names.

    Args:
        place: run folder, model folder, adapter folder or hub name.
        num_crops: most crops a picture; none: as in training.
        dtype: torch dtype of the weights; none: float32.

    Raises:
        ModelError: it cannot be read.
    """
    found, crops = find_model(place), num_crops or find_num_crops(place)
    folder = Path(found)
    if not (folder / ADAPTER_CONFIG).is_file():
        return load(found, crops, dtype=dtype)
    loaded = load(read_base_name(folder), crops, dtype=dtype)
    put_adapter(loaded.model, folder)
    merge_adapters(loaded.model)
    processor = loaded.family.load_processor(str(folder), crops)
    # An adapter's folder brings words and images, not the model's own sizes.
    processor.long_context_tokens = loaded.processor.long_context_tokens
    return replace(loaded, processor=processor)


def read_base_name(folder: Path) -> str:
    """Read which model an adapter belongs to.

    Raises:
        ModelError: it does not say.
    """
    try:
        tree = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return str(tree["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: it names no base model ({error}); export it again"
        ) from error


def put_adapter(model: Any, folder: Path) -> None:
    """Put the adapter of a folder beside the layers of its base, through peft alone."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft asks transformers for a name that it is about to lose.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        PeftModel.from_pretrained(model, str(folder))  # its layers go into the model itself
    model.requires_grad_(False).eval()
