"""A model with adapters <-> files: what peft loads by itself, and a merged folder."""

import json
import shutil
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from foveal.adapt.adapters import ADAPTER, adapted_layers, merge_adapters
from foveal.adapt.quantize import is_quantized, skeleton
from foveal.models.family import find_family

SHARD_BYTES = 2 * 10**9

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
    from peft import get_peft_model_state_dict

    if next(adapted_layers(model), None) is None:
        return None
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


def save_merged(model: Any, folder: Path) -> None:
    """Write a model with its adapters added to its layers; it is not to be used afterwards.

    Raises:
        OSError: a file cannot be read or written.
    """
    if is_quantized(model):
        _save_onto_whole_weights(model, model.name_or_path, folder)
    else:
        merge_adapters(model)
        model.save_pretrained(folder)


def _learnt(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def _save_onto_whole_weights(model: Any, base: str, folder: Path) -> None:
    """Add adapters that learnt beside 4-bit weights to the whole ones, as their files hold them.

    A file at a time: neither the whole model nor its sum is ever in memory.
    """
    plain = skeleton(base)
    read = _reader(base, set(plain.state_dict()))
    layers = dict(adapted_layers(model))
    learnt = _learnt(model)
    plan = split_torch_state_dict_into_shards(
        {name: torch.empty_like(read(name), device="meta") for name in plain.state_dict()},
        max_shard_size=SHARD_BYTES,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in plan.filename_to_tensors.items():
        tensors = {}
        for name in names:
            weight = read(name)
            if name in learnt:
                weight = learnt[name].detach().to("cpu", weight.dtype)
            elif layer := layers.get(name.removesuffix(".weight")):
                weight = _merge(layer, weight)
            tensors[name] = weight.contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1))
    plain.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


@torch.no_grad()
def _merge(layer: Any, weight: Tensor) -> Tensor:
    """Add an adapter to its layer's whole weight, by peft's own arithmetic."""
    device = layer.lora_A[ADAPTER].weight.device
    whole = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    whole.weight = nn.Parameter(weight.to(device, torch.float32), requires_grad=False)
    packed, layer.base_layer = layer.base_layer, whole
    try:
        if ADAPTER in layer.lora_variant:  # DoRA
            merged = layer.lora_variant[ADAPTER].merge_safe(layer, ADAPTER, whole.weight.data)
        else:
            merged = whole.weight + layer.get_delta_weight(ADAPTER)
    finally:
        layer.base_layer = packed
    added: Tensor = merged.to("cpu", weight.dtype)
    return added


def _reader(base: str, names: set[str]) -> Callable[[str], Tensor]:
    """Find a way to a model's weights by name: in its files, a tensor at a time, if they fit."""
    files = {name: file for file in weight_files(base) for name in _names_in(file)}
    if names <= files.keys():
        return lambda name: _read(files[name], name)
    # Files of another layout, which transformers translates: it must have all of them at once.
    loaded = find_family(base).load_model(base, "auto", "auto").state_dict()
    return lambda name: loaded[name]


def _names_in(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
        return tensor


def weight_files(base: str) -> list[Path]:
    """List the safetensors files of a model folder or hub name."""
    index = cached_file(base, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return [Path(cached_file(base, SAFE_WEIGHTS_NAME))]
    mapped = json.loads(Path(index).read_text())["weight_map"]
    return [Path(cached_file(base, name)) for name in sorted(set(mapped.values()))]
