"""Rules -> which linear layers a model holds in 4 bits, and how bitsandbytes shall hold them."""

import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.adapt.strategy import first_match
from foveal.config import QuantizationSettings, Rule
from foveal.errors import RunError
from foveal.machine import DTYPES
from foveal.models.family import Family
from foveal.models.few_bits import CODE, is_computed_rightly
from foveal.models.hub.registration import register_now
from foveal.models.loading import find_family
from foveal.storage import write_json

RECORD = "four_bit.json"
"""In a run's folder: which shapes it holds whole although its rules would have them in 4 bits."""

Shape = tuple[int, int]
"""(outputs, inputs) of a linear layer."""


def plan_quantization(
    name: str,
    rules: Sequence[Rule],
    settings: QuantizationSettings,
    precision: str,
    whole: Collection[Shape] = (),
) -> Any:
    """Say which layers of a model are read straight into 4 bits.

    With it, transformers builds the model without weights, and reads, quantizes and drops one
    tensor after the other: memory stays near the size of the model in 4 bits.

    Args:
        name: folder or hub name of the model.
        rules: of the strategy.
        settings: of the recipe.
        precision: that the layers compute in, unless the settings name one.
        whole: shapes that stay as they are, whatever the rules say.

    Returns:
        transformers' BitsAndBytesConfig; none: nothing is quantized.
    """
    if not wants_four_bits(rules):
        return None
    from transformers import BitsAndBytesConfig

    model = skeleton(name)
    chosen = quantized_layers(model, find_family(name), rules, whole)
    if not chosen:
        return None
    kept = [layer for layer, _ in _linear_layers(model) if layer not in chosen]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=CODE,
        bnb_4bit_compute_dtype=compute_format(settings, precision),
        bnb_4bit_use_double_quant=settings.double,
        # Patterns, which transformers matches from a name's beginning up to a dot, or as its end.
        llm_int8_skip_modules=[f"^{re.escape(layer)}$" for layer in kept],
    )


def wants_four_bits(rules: Sequence[Rule]) -> bool:
    """Tell whether any rule asks for layers in 4 bits."""
    return any(rule.quantize for rule in rules)


def compute_format(settings: QuantizationSettings, precision: str) -> torch.dtype:
    """Say in which number format 4-bit layers compute."""
    return DTYPES[settings.compute or precision]


def skeleton(name: str) -> Any:
    """Build a model without weights."""
    from transformers import AutoConfig

    return bare_model(AutoConfig.from_pretrained(name))


def bare_model(config: Any) -> Any:
    """Build a model without weights from its configuration alone."""
    from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM

    register_now()  # a configuration of ours may have been made without transformers' registries
    is_listed = type(config) in AutoModelForImageTextToText._model_mapping
    kind = AutoModelForImageTextToText if is_listed else AutoModelForMultimodalLM
    with torch.device("meta"):
        return kind.from_config(config)


def quantized_layers(
    model: nn.Module, family: Family, rules: Sequence[Rule], whole: Collection[Shape] = ()
) -> set[str]:
    """Name the linear layers whose rule says so; never the head, whose errors are the answer's."""
    head = family.head(model)
    chosen = set()
    for name, layer in _linear_layers(model):
        rule = first_match(family.part_name(f"{name}.weight"), rules)
        if rule and rule.quantize and layer is not head and _shape(layer) not in whole:
            chosen.add(name)
    return {name for name in chosen if not _casts_to_weight(model, name)}


def _casts_to_weight(model: nn.Module, name: str) -> bool:
    """Tell whether what a layer reads is cast to its weight's format, which in 4 bits is bytes.

    Of some towers that is what reads patches: pixels between -1 and 1 would become 0 and 255.
    """
    owner, _, layer = name.rpartition(".")
    code = _code_of(type(model.get_submodule(owner)).forward)
    return f"{layer}.weight.dtype" in code and "is_floating_point" not in code


@lru_cache(maxsize=256)
def _code_of(forward: Callable[..., Any]) -> str:
    """Read what a kind of module does, once for all layers of it; empty: made while running."""
    try:
        return inspect.getsource(forward)
    except OSError:
        return ""


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, one) for name, one in model.named_modules() if type(one) is nn.Linear]


def _shape(layer: nn.Linear) -> Shape:
    return layer.out_features, layer.in_features


@dataclass(frozen=True)
class FourBits:
    """What a machine makes of the layers that a model's rules ask for in 4 bits."""

    layers: Mapping[str, Shape] = field(default_factory=dict)
    """All that the rules name."""

    wrong: frozenset[Shape] = frozenset()
    """Shapes that it would compute wrongly."""

    whole: frozenset[Shape] = frozenset()
    """Shapes that stay whole."""

    def lines(self) -> list[str]:
        """Name the layers that stay whole, one line; empty: none does."""
        whole = [name for name, shape in self.layers.items() if shape in self.whole]
        if not whole:
            return []
        why = "bitsandbytes computes their shapes wrongly on this machine"
        if not self.whole <= self.wrong:
            why = "so the run began, on a machine that computes their shapes wrongly"
        return [f"{name_kinds(whole)} stay whole instead of in 4 bits: {why}"]

    def check(self, run: Path) -> None:
        """Refuse to go on with layers in 4 bits that this machine computes wrongly.

        Raises:
            RunError: names them.
        """
        spoilt = [name for name, shape in self.layers.items() if shape in self.wrong - self.whole]
        if spoilt:
            raise RunError(
                f"{run}: it holds {name_kinds(spoilt)} in 4 bits, which bitsandbytes computes "
                "wrongly on this machine; go on where it began, choose another run=..., or start "
                "anew with --fresh"
            )


def name_kinds(layers: Collection[str]) -> str:
    """Count layers and name their kinds: `48 layers (layers.*.mlp.fc1, layers.*.mlp.fc2)`."""
    kinds = dict.fromkeys(map(layer_kind, layers))
    count = f"{len(layers)} layer{'s' if len(layers) != 1 else ''}"
    return f"{count} ({', '.join(kinds)})"


def layer_kind(layer: str) -> str:
    """Name a layer without its number: `layers.*.mlp.down_proj`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", layer)


def inspect_four_bits(
    model: nn.Module,
    family: Family,
    rules: Sequence[Rule],
    settings: QuantizationSettings,
    precision: str,
    device: torch.device,
) -> FourBits:
    """Find the layers that rules ask for in 4 bits, and try each shape of them once on a device.

    Args:
        model: stands without weights.
        family: of the model.
        rules: of the strategy.
        settings: of the recipe.
        precision: that the layers compute in, unless the settings name one.
        device: of the run.
    """
    chosen = quantized_layers(model, family, rules)
    layers = {name: _shape(layer) for name, layer in _linear_layers(model) if name in chosen}
    how = device, compute_format(settings, precision), settings.double
    shapes = sorted(set(layers.values()))
    wrong = frozenset(shape for shape in shapes if not is_computed_rightly(shape, *how))
    return FourBits(layers, wrong, wrong)


def write_record(run: Path, found: FourBits) -> None:
    """Write down which shapes a run holds whole: it goes on so on any machine.

    Raises:
        OSError: it cannot be written.
    """
    if found.layers:
        write_json(run / RECORD, {"whole": sorted(found.whole)})


def read_record(run: Path) -> frozenset[Shape]:
    """Read which shapes a run holds whole; no record is none.

    Raises:
        RunError: it cannot be read.
    """
    path = run / RECORD
    try:
        tree = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"whole": []}
        return frozenset((int(outputs), int(inputs)) for outputs, inputs in tree["whole"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: {error}; start anew with --fresh") from error
