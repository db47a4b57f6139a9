"""A recipe's settings + a machine -> all that an estimate hangs on besides the data (pure)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from foveal.adapt.quantize import Shape
from foveal.adapt.strategy import rules_of
from foveal.config import LoraSettings, Rule, ShardingSettings
from foveal.models.family import PARTS, Family
from foveal.models.phi3_vision.seam import FAMILY as PHI3_VISION
from foveal.plan.activations import Attention
from foveal.plan.arithmetic import NOTHING, Learning, Strategy
from foveal.plan.weights import Assigned, Holdings, assign_without_weights, count_holdings
from foveal.train.recompute import Recompute

Engine = Literal["single", "ddp", "fsdp2", "zero2"]
Precision = Literal["float32", "bf16", "fp16"]
ENGINES: tuple[Engine, ...] = ("single", "ddp", "zero2", "fsdp2")


@dataclass(frozen=True)
class Setup:
    """How a run is set up on some machines."""

    config: Any
    """Sizes of the model."""

    strategy: str
    learning: Strategy
    holdings: Holdings
    precision: Precision
    recompute: Recompute
    engine: Engine
    attention: Attention
    gpus: int
    """Of one node."""

    nodes: int
    lora: LoraSettings = field(default_factory=LoraSettings)
    sharding: ShardingSettings = field(default_factory=ShardingSettings)

    @property
    def is_cut_by_node(self) -> bool:
        """Whether each node holds a whole copy of what is cut."""
        return self.engine == "fsdp2" and self.sharding.group == "node"

    @property
    def shares(self) -> int:
        """Processes that a copy of what is cut is cut over."""
        return self.gpus if self.is_cut_by_node else self.world_size

    @property
    def travelling_bytes(self) -> int:
        """Of a number of a block's weight while it is brought together."""
        return self.number_bytes if self.sharding.gather == "precision" else 4

    @property
    def world_size(self) -> int:
        """Processes of all nodes."""
        return self.gpus * self.nodes

    @property
    def number_bytes(self) -> int:
        """Of a number that the model computes with."""
        return 4 if self.precision == "float32" else 2

    @property
    def fixed_bytes(self) -> int:
        """Of a number of a linear layer's weight that does not learn, see `adapt.fixed`."""
        held_small = self.engine in ("single", "ddp") and not self.lora.dora
        return self.number_bytes if held_small else 4


def engine_name(name: str, world_size: int) -> Engine:
    """Decide "auto" as a run does."""
    if name in ("auto", "single"):
        return "single" if world_size == 1 else "ddp"
    return name  # type: ignore[return-value]  # the recipe's own names


def learning_of(
    config: Any,
    strategy: str | Sequence[Rule],
    lora: LoraSettings,
    whole: Collection[Shape] = (),
    family: Family = PHI3_VISION,
) -> tuple[str, Strategy, Holdings]:
    """Say what learns, part by part, and what it takes to hold it.

    A part in which some weights learn counts as if all of them did: an upper bound. Adapters count
    as if all layers of a part had some, as wide as to learn as many numbers.

    Args:
        config: of the model.
        strategy: a name, `qlora` among them, or rules.
        lora: of the adapters.
        whole: shapes that are never held in 4 bits, whatever the rules say.
        family: of the model.

    Raises:
        ConfigError: a rule decides for no weight, or nothing learns.
    """
    name = strategy if isinstance(strategy, str) else "rules"
    made = assign_without_weights(config, family, rules_of(strategy), lora, whole)
    learning = Strategy(*(_part(made, part) for part in PARTS))
    return name, learning, count_holdings(made)


def _part(made: Assigned, part: str) -> Learning:
    own = [one for one in made.assignments if one.part_name.startswith(f"{part}.")]
    weights = any(one.learn for one in own if one.rank is None)
    adapters = sum(one.elements for one in own if one.rank is not None)
    if not adapters:
        return Learning(weights=True) if weights else NOTHING
    sides = sum(
        module.in_features + module.out_features
        for name, module in made.model.named_modules()
        if isinstance(module, nn.Linear)
        and ".lora_" not in name
        and made.family.part_name(name).startswith(f"{part}.")
        and not made.family.is_unused(made.model, f"{name}.weight")
    )
    return Learning(weights=weights, adapter_rank=adapters / sides)
