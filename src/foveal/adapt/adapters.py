"""Linear layers -> the same layers with a low-rank adapter beside them, through peft."""

from collections.abc import Sequence

from torch import nn

from foveal.config import LoraSettings


def add_adapters(model: nn.Module, layers: Sequence[str], settings: LoraSettings) -> None:
    """Put an adapter beside each named linear layer; the model keeps its class.

    Args:
        model: changed in place.
        layers: full module names.
        settings: rank, alpha and dropout; scale = alpha / rank.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(layers),
        bias="none",
    )
    inject_adapter_in_model(config, model)


def merge_adapters(model: nn.Module) -> None:
    """Add each adapter to its layer and take it away; the model is plain again."""
    from peft.tuners.lora import LoraLayer

    adapted = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    ]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
