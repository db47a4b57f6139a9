"""A run -> its tuned model in memory, by another way than the export's: peft's own layers."""

from collections.abc import Mapping

import torch
from torch import nn

from foveal.adapt.adapters import add_adapters
from foveal.deliver.export_source import RunSource
from foveal.deliver.tensors import StoredTensor
from foveal.errors import ModelError
from foveal.models.family import LoadedModel, load


def load_tuned(source: RunSource) -> LoadedModel:
    """Load a run's base and put what the run learnt in place, adapters beside their layers.

    Raises:
        ModelError: they do not belong together.
    """
    loaded = load(str(source.base), source.recipe.data.image_budget)
    if source.adapters:
        add_adapters(loaded.model, source.adapter_sizes, source.recipe.lora)
    put_weights(loaded.model, source.learnt)
    loaded.model.requires_grad_(False).eval()
    return loaded


@torch.no_grad()
def put_weights(model: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Put the weights of a checkpoint in place, one at a time.

    Raises:
        ModelError: the model has no weight of a name, or one of another shape.
    """
    weights = model.state_dict()
    for name, one in stored.items():
        if name not in weights or weights[name].shape != one.shape:
            raise ModelError(f"{one.file}: the base model has no weight {name} of {one.shape}")
        weights[name].copy_(one.read())


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype, only_adapters: bool = False) -> None:
    """Round weights as a file in `dtype` would; they stay float32 to compute with."""
    for name, weight in model.named_parameters():
        if not only_adapters or ".lora_" in name:
            weight.copy_(weight.to(dtype).to(weight.dtype))
