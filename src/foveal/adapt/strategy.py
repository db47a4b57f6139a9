"""Rules -> which weights learn and how, and how the others are held; the first that matches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from rich.table import Table
from torch import nn

from foveal.config import LoraSettings, Rule
from foveal.errors import ConfigError
from foveal.models.family import Family

PROJECTOR_RATE_FROZEN_VISION = 2.0e-5

STRATEGIES: dict[str, tuple[Rule, ...]] = {
    "full": (Rule(match="*"),),
    "frozen_vision": (
        Rule(match="vision.*", learn=False),
        Rule(match="projector.*", learning_rate=PROJECTOR_RATE_FROZEN_VISION),
        Rule(match="language.*"),
    ),
    "lora": (Rule(match="*", learn=False, adapter=True),),
    "qlora": (Rule(match="*", learn=False, adapter=True, quantize=True),),
}
"""The named strategies; a recipe may spell out rules of its own instead."""


@dataclass(frozen=True)
class Assignment:
    """What becomes of one weight."""

    name: str
    """The model's own name."""

    part_name: str
    learn: bool
    learning_rate: float
    """Highest rate."""

    weight_decay: float
    elements: int
    four_bits: bool = False
    """Whether it is held in 4 bits."""

    rank: int | None = None
    """Of an adapter's weight: the adapter's width."""

    alpha: float | None = None
    scale: float | None = None
    """What an adapter's output is multiplied by, as peft holds it."""


def rules_of(strategy: str | Sequence[Rule]) -> tuple[Rule, ...]:
    """Look up a named strategy, or take rules as they are."""
    return STRATEGIES[strategy] if isinstance(strategy, str) else tuple(strategy)


def assign(
    model: nn.Module,
    family: Family,
    rules: Sequence[Rule],
    learning_rate: float,
    weight_decay: float,
    lora: LoraSettings | None = None,
) -> tuple[Assignment, ...]:
    """Give linear layers their adapters and decide for every weight; sets `requires_grad`.

    Raises:
        ConfigError: a rule matches nothing, or nothing is left to learn.
    """
    part_names = {name: family.part_name(name) for name, _ in model.named_parameters()}
    found = {name: first_match(part_name, rules) for name, part_name in part_names.items()}
    deciding = {id(rule) for rule in found.values()}
    for number, rule in enumerate(rules, start=1):
        if id(rule) not in deciding and len(rules) > 1:
            raise ConfigError(
                f"strategy: rule {number} ({rule.match}) decides for no weight; "
                "an earlier rule is wider, or the pattern is wrong"
            )
    verdicts = {
        name: rule or Rule(match=part_names[name], learn=False) for name, rule in found.items()
    }
    adapted = {
        name.removesuffix(".weight"): verdict
        for name, verdict in verdicts.items()
        if verdict.adapter and _can_adapt(model, family, name)
    }
    if adapted:
        adapted = _add_adapters(model, adapted, lora or LoraSettings())
    made = []
    for name, parameter in model.named_parameters():
        layer = next((owner for owner in _owners(name) if owner in adapted), None)
        is_adapter = layer is not None and ".lora_" in name
        rule = verdicts[name] if layer is None else adapted[layer]
        learn = is_adapter or (layer is None and rule.learn and not family.is_unused(model, name))
        parameter.requires_grad_(learn)
        made.append(
            Assignment(
                name,
                family.part_name(name),
                learn,
                rule.learning_rate or learning_rate,
                weight_decay if rule.weight_decay is None else rule.weight_decay,
                _count(parameter),
                four_bits=hasattr(parameter, "quant_state"),
                **(_adapter_sizes(model, layer) if is_adapter and layer else {}),
            )
        )
    if not any(assignment.learn for assignment in made):
        raise ConfigError(
            "strategy: no weight learns; let a rule have learn: true or adapter: true"
        )
    return tuple(made)


def first_match(part_name: str, rules: Sequence[Rule]) -> Rule | None:
    """Find the rule that decides for a weight."""
    return next((rule for rule in rules if fnmatchcase(part_name, rule.match)), None)


def _add_adapters(
    model: nn.Module, rules: Mapping[str, Rule], lora: LoraSettings
) -> dict[str, Rule]:
    """Give layers their adapters; returns the rules of those that have one now."""
    from foveal.adapt.adapters import AdapterSize, add_adapters, layers_for_adapters

    suited = {layer: rules[layer] for layer in layers_for_adapters(model, rules)}
    sizes = {
        layer: AdapterSize(rule.rank or lora.rank, rule.alpha or lora.alpha)
        for layer, rule in suited.items()
    }
    add_adapters(model, sizes, lora)
    return suited


def _adapter_sizes(model: nn.Module, layer: str) -> dict[str, Any]:
    adapted: Any = model.get_submodule(layer)
    ((name, rank),) = adapted.r.items()
    return {"rank": rank, "alpha": adapted.lora_alpha[name], "scale": adapted.scaling[name]}


def _count(parameter: nn.Parameter) -> int:
    """Count a parameter's numbers, also where two of them share a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _can_adapt(model: nn.Module, family: Family, name: str) -> bool:
    if not name.endswith(".weight") or family.is_unused(model, name):
        return False
    layer = name.removesuffix(".weight")
    owner = model.get_submodule(layer.rpartition(".")[0])
    # That one reads the weight of its last layer, and calls no layer.
    is_called = not isinstance(owner, nn.MultiheadAttention)
    return is_called and isinstance(model.get_submodule(layer), nn.Linear)


def _owners(name: str) -> Iterator[str]:
    """Yield the modules that a weight stands in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def frozen_matrices(model: nn.Module) -> list[nn.Parameter]:
    """List the matrices of linear layers that do not learn and that nothing else reads.

    A head that is the embedding too is not among them: an embedding hands its numbers on as they
    are held, and all layers behind it would add to fewer digits.
    """
    kinds: dict[int, bool] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            is_alone = kinds.get(id(weight), True)
            kinds[id(weight)] = is_alone and isinstance(module, nn.Linear)
    frozen = [one for one in model.parameters() if kinds[id(one)] and not one.requires_grad]
    return [one for one in frozen if one.dim() == 2]


def hold_frozen_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the frozen matrices of linear layers in `dtype`.

    Autocast would round them at every use: the same bits come out, for half the memory and none of
    the copies. Only what learns needs more digits than a pass has.

    Args:
        model: whose rules are assigned; weights in 4 bits stay as they are.
        dtype: of the passes.
    """
    for weight in frozen_matrices(model):
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)


@dataclass(frozen=True)
class Fate:
    """What becomes of some weights of a part; a line of the table before the first step."""

    part: str
    what: str
    learning_rate: float | None = None
    """Highest rate; none: they do not learn."""

    weight_decay: float | None = None
    rank: int | None = None
    alpha: float | None = None
    scale: float | None = None


def summarize(assignments: Sequence[Assignment]) -> dict[Fate, int]:
    """Gather weights by part and fate, and count their numbers."""
    counts: dict[Fate, int] = {}
    for one in assignments:
        part = one.part_name.partition(".")[0]
        if one.learn:
            what = "learns" if one.rank is None else "adapter"
            sizes = (one.rank, one.alpha, one.scale)
            fate = Fate(part, what, one.learning_rate, one.weight_decay, *sizes)
        else:
            fate = Fate(part, "frozen, 4 bits" if one.four_bits else "frozen")
        counts[fate] = counts.get(fate, 0) + one.elements
    return counts


def strategy_table(assignments: Sequence[Assignment]) -> Table:
    """Lay out what learns, how many parameters, how fast, and through what."""
    counts = summarize(assignments)
    numbers = ["parameters", "highest rate", "decay"]
    if any(fate.rank is not None for fate in counts):
        numbers += ["rank", "alpha", "scale"]
    table = Table("part", "what becomes of it", collapse_padding=True, pad_edge=False)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=name == "parameters")
    for fate, count in counts.items():
        rate = "-" if fate.learning_rate is None else f"{fate.learning_rate:.1e}"
        sizes = (fate.weight_decay, fate.rank, fate.alpha, fate.scale)
        shown = [f"{count:,}", rate, *("-" if size is None else f"{size:g}" for size in sizes)]
        table.add_row(fate.part, fate.what, *shown[: len(numbers)])
    return table
