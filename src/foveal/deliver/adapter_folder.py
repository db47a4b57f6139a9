"""A run's adapters -> a small folder that peft loads onto the base by itself."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from foveal.deliver.merge import PIECES
from foveal.deliver.source import RunSource

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""peft's name of the model that its own stands around."""


def write_adapter(source: RunSource, folder: Path, dtype: torch.dtype) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    from peft import LoraConfig

    lora = source.recipe.lora
    endings = {piece: f"lora_{name}" for name, piece in PIECES.items()}
    tensors = {}
    for layer, pieces in source.adapters.items():
        for piece, stored in pieces.items():
            ending = endings[piece] + ("" if piece == "magnitude" else ".weight")
            tensors[f"{PREFIX}{layer}.{ending}"] = stored.read().to(dtype).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    LoraConfig(
        base_model_name_or_path=source.base_name,
        inference_mode=True,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(source.adapters),
        bias="none",
    ).save_pretrained(str(folder))
