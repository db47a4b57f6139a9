"""A run's adapters -> a small folder that peft loads onto the base by itself."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from foveal.adapt.adapters import lora_config
from foveal.deliver.export_source import RunSource
from foveal.deliver.merge import PIECES

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""peft's name of the model that its own stands around."""


def write_adapter(source: RunSource, folder: Path, dtype: torch.dtype) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    endings = {piece: f"lora_{name}" for name, piece in PIECES.items()}
    tensors = {}
    for layer, pieces in source.adapters.items():
        for piece, stored in pieces.items():
            ending = endings[piece] + ("" if piece == "magnitude" else ".weight")
            tensors[f"{PREFIX}{layer}.{ending}"] = stored.read().to(dtype).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = lora_config(source.adapter_sizes, source.recipe.lora)
    on_hub, base = source.base_is_on_hub, source.base.resolve()  # a folder, wherever it is read
    config.base_model_name_or_path = source.base_name if on_hub else str(base)
    config.inference_mode = True
    config.save_pretrained(str(folder))
