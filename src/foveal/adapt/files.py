"""A model with adapters -> a small folder that peft loads by itself."""

import shutil
from copy import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from foveal.adapt.adapters import ADAPTER, adapted_layers
from foveal.models.nf4 import is_quantized

PEFT_PREFIX = "base_model.model."
"""What peft puts before the names of a model that it wraps."""


def save_adapter(model: Any, folder: Path) -> str | None:
    """Write adapter_config.json and adapter_model.safetensors, if the adapters are all that learnt.

    `PeftModel.from_pretrained(base model, folder)` then gives the tuned model.

    Args:
        model: as it was trained.
        folder: new; written beside and renamed.

    Returns:
        Why there is none, or what it stands beside, if a person must know.

    Raises:
        OSError: it cannot be written.
    """
    if next(adapted_layers(model), None) is None:
        return None
    from peft import get_peft_model_state_dict

    others = [name for name in _learnt(model) if ".lora_" not in name]
    if others:
        return (
            f"{len(others)} weights such as {others[0]} learnt without an adapter: no folder "
            f"{folder.name} can hold all that was learnt, only the merged one does"
        )
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    config = copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path = model.name_or_path
    config.inference_mode = True
    config.save_pretrained(beside)
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    save_file(
        {f"{PEFT_PREFIX}{name}": one.detach().cpu().contiguous() for name, one in tensors.items()},
        beside / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    if is_quantized(model):
        return (
            "The adapters learnt beside 4-bit weights; the merged folder adds them to the whole "
            f"weights of {model.name_or_path}, so its scores may differ a little: evaluate it"
        )
    return None


def _learnt(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}
