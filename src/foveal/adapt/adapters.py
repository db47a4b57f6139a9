"""Linear layers -> the same layers with a low-rank adapter beside them, through peft."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveal.config import LoraSettings
from foveal.errors import ConfigError
from foveal.libraries import import_peft, without_bitsandbytes
from foveal.models.few_bits import is_quantized

ADAPTER = "default"
"""Its name, as peft calls one that has none."""


@dataclass(frozen=True)
class AdapterSize:
    """Width of an adapter, and how much of what it says is added to its layer."""

    rank: int
    alpha: float


def add_adapters(
    model: nn.Module, sizes: Mapping[str, AdapterSize], settings: LoraSettings
) -> None:
    """Put an adapter beside each named linear layer; the model keeps its class.

    Adapters learn, so they are float32 beside a layer of any format: in bf16 a step of 1e-4 would
    vanish in a weight of 0.1, and fp16's loss scaling refuses weights of its own format.

    Args:
        model: changed in place.
        sizes: full module name -> its adapter's size.
        settings: all that adapters have in common.

    Raises:
        ConfigError: the first values that were asked for do not suit a layer.
    """
    inject_adapter_in_model = import_peft().inject_adapter_in_model
    from peft.functional import cast_adapter_dtype

    _check_initialization(model, sizes, settings)
    with nullcontext() if is_quantized(model) else without_bitsandbytes():
        inject_adapter_in_model(lora_config(sizes, settings), model, ADAPTER)
    cast_adapter_dtype(model, ADAPTER)


def lora_config(sizes: Mapping[str, AdapterSize], settings: LoraSettings) -> Any:
    """Say in peft's words which layers have which adapter; a peft LoraConfig."""
    return import_peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=settings.initialization == "default" or settings.initialization,
        target_modules=sorted(sizes),
        # Keys are patterns.
        rank_pattern={
            re.escape(name): size.rank for name, size in sizes.items() if size.rank != settings.rank
        },
        alpha_pattern={
            re.escape(name): size.alpha
            for name, size in sizes.items()
            if size.alpha != settings.alpha
        },
        bias="none",
    )


def layers_for_adapters(model: Any, layers: Iterable[str]) -> list[str]:
    """Leave out the layers whose names peft takes for those of a mixture's experts.

    Of some types it puts adapters of `gate_proj` and the like beside the one tensor of all experts,
    wherever such a layer stands; an adapter beside a shared expert could not be opened with it.
    """
    import_peft()
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    def is_kept(name: str) -> bool:
        config = lora_config({name: AdapterSize(1, 1)}, LoraSettings())
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # only together with what it is fused with
            return False
        return bool(config.target_modules)

    layers = list(layers)
    kept = {one: is_kept(f"layer.{one}") for one in {name.rpartition(".")[2] for name in layers}}
    return [name for name in layers if kept[name.rpartition(".")[2]]]


def _check_initialization(
    model: nn.Module, sizes: Mapping[str, AdapterSize], settings: LoraSettings
) -> None:
    if settings.initialization != "orthogonal":
        return
    for name, size in sizes.items():
        if size.rank % 2:
            raise ConfigError(
                f"lora.initialization=orthogonal needs even ranks, {name} has {size.rank}; "
                "change its rank or use lora.initialization=default"
            )
        weight: Any = model.get_submodule(name).weight
        if not weight.is_floating_point():
            raise ConfigError(
                f"lora.initialization=orthogonal needs whole weights, {name} is held in 4 bits; "
                "use lora.initialization=default or gaussian"
            )


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every layer that has an adapter, under its own name; a peft LoraLayer."""
    if not hasattr(model, "peft_config"):
        return  # and spares the import of peft, which takes seconds
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Run a model as it was before it had adapters."""
    _enable_adapters(model, False)
    try:
        yield
    finally:
        _enable_adapters(model, True)


def _enable_adapters(model: nn.Module, enabled: bool) -> None:
    for _, layer in adapted_layers(model):
        learning = [(one, one.requires_grad) for one in layer.parameters()]
        layer.enable_adapters(enabled)
        # peft says of switched-off adapters that they do not learn. An engine that gathers weights
        # would remember it from the first pass on.
        for one, learns in learning:
            one.requires_grad_(learns)


def merge_adapters(model: nn.Module) -> None:
    """Add each adapter to its layer and take it away; the model is plain again."""
    for name, layer in list(adapted_layers(model)):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
