"""Rules -> which weights learn and how: the first rule that matches a weight decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
    decided = dict.fromkeys(range(len(rules)), 0)
    verdicts = {
        name: _verdict(family.part_name(name), rules, decided)
        for name, _ in model.named_parameters()
    }
    for index, count in decided.items():
        if not count and len(rules) > 1:
            raise ConfigError(
                f"strategy: rule {index + 1} ({rules[index].match}) decides for no weight; "
                "an earlier rule is wider, or the pattern is wrong"
            )
    adapted = {
        name.removesuffix(".weight"): verdict
        for name, verdict in verdicts.items()
        if verdict.adapter and _can_adapt(model, family, name)
    }
    if adapted:
        from foveal.adapt.adapters import add_adapters

        add_adapters(model, sorted(adapted), lora or LoraSettings())
    made = []
    for name, parameter in model.named_parameters():
        owner = next((adapted[layer] for layer in _owners(name) if layer in adapted), None)
        if owner is not None and ".lora_" in name:
            rule, learn = owner, True
        elif owner is not None:
            rule, learn = owner, False
        else:
            rule = verdicts[name]
            learn = rule.learn and not family.is_unused(model, name)
        parameter.requires_grad_(learn)
        made.append(
            Assignment(
                name,
                family.part_name(name),
                learn,
                rule.learning_rate or learning_rate,
                weight_decay if rule.weight_decay is None else rule.weight_decay,
                parameter.numel(),
            )
        )
    if not any(assignment.learn for assignment in made):
        raise ConfigError(
            "strategy: no weight learns; let a rule have learn: true or adapter: true"
        )
    return tuple(made)


def _verdict(part_name: str, rules: Sequence[Rule], decided: dict[int, int]) -> Rule:
    for index, rule in enumerate(rules):
        if fnmatchcase(part_name, rule.match):
            decided[index] += 1
            return rule
    return Rule(match=part_name, learn=False)


def _can_adapt(model: nn.Module, family: Family, name: str) -> bool:
    if not name.endswith(".weight") or family.is_unused(model, name):
        return False
    return isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Linear)


def _owners(name: str) -> Iterator[str]:
    """Yield the modules that a weight stands in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def summarize(assignments: Sequence[Assignment]) -> list[tuple[str, str, int, float]]:
    """Gather weights by part and fate: (part, fate, parameters, highest rate)."""
    rows: dict[tuple[str, str, float], int] = {}
    for one in assignments:
        adapter = ".lora_" in one.name
        fate = ("adapter" if adapter else "learns") if one.learn else "fixed"
        key = (one.part_name.partition(".")[0], fate, one.learning_rate if one.learn else 0.0)
        rows[key] = rows.get(key, 0) + one.elements
    return [(part, fate, count, rate) for (part, fate, rate), count in rows.items()]
