"""A recipe's settings + a machine -> all that an estimate hangs on besides the data (pure)."""

from dataclasses import dataclass, field
from typing import Literal

from foveal.config import ShardingSettings
from foveal.machine import Precision
from foveal.plan.model_costs.asked import AskedModel
from foveal.plan.model_costs.terms import PassCosts
from foveal.plan.model_costs.weights import Holdings
from foveal.plan.model_costs.work import Ask
from foveal.train.engines import EngineName
from foveal.train.optim import WORK_ON_CUTS
from foveal.train.recompute import Recompute

Attention = Literal["blocks", "sdpa", "eager", "flex", "flash_attention_2"]


@dataclass(frozen=True)
class Setup:
    """How a run is set up on some machines."""

    model: AskedModel
    precision: Precision
    recompute: Recompute
    engine: EngineName
    attention: Attention
    gpus: int
    """Of one node."""

    nodes: int
    optimizer: str = "adamw"
    sharding: ShardingSettings = field(default_factory=ShardingSettings)

    @property
    def strategy(self) -> str:
        """Name of what learns."""
        return self.model.strategy if isinstance(self.model.strategy, str) else "rules"

    @property
    def holdings(self) -> Holdings:
        """What a process has to hold."""
        return self.model.holdings

    @property
    def costs(self) -> PassCosts:
        """What a pass costs."""
        return self.model.costs(Ask(self.precision, self.attention, self.recompute))

    @property
    def costs_without_recompute(self) -> PassCosts:
        """What a pass would cost if nothing were run again."""
        return self.model.costs(Ask(self.precision, self.attention, "none"))

    @property
    def costs_of_reading(self) -> PassCosts:
        """What a pass costs that is not run back."""
        return self.model.reading.costs(Ask(self.precision, self.attention, "none"))

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
    def frozen_bytes(self) -> int:
        """Of a number of a linear layer's weight that does not learn, see `hold_frozen_weights`."""
        held_small = self.engine in ("single", "ddp") and not self.model.lora.dora
        return self.number_bytes if held_small else 4


def engines_of(optimizer: str, world_size: int) -> tuple[EngineName, ...]:
    """Name the engines that could run so many processes."""
    if world_size == 1:
        return ("single",)
    return ("ddp", "zero2", "fsdp2") if optimizer in WORK_ON_CUTS else ("ddp",)
