"""A recipe's settings + a machine -> all that an estimate hangs on besides the data (pure)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foveal.adapt.strategy import rules_of
from foveal.config import Rule
from foveal.plan.activations import Attention
from foveal.plan.arithmetic import NOTHING, Learning, Strategy
from foveal.plan.weights import Fate, Holdings, count_holdings, fates_of

Engine = Literal["single", "ddp", "fsdp2", "zero2"]
Recompute = Literal["none", "blocks"]
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
    adapter_dropout: bool = False

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
        return self.number_bytes if self.engine in ("single", "ddp") else 4


def engine_name(name: str, world_size: int) -> Engine:
    """Decide "auto" as a run does."""
    if name in ("auto", "single"):
        return "single" if world_size == 1 else "ddp"
    return name  # type: ignore[return-value]  # the recipe's own names


def learning_of(
    config: Any,
    strategy: str | Sequence[Rule],
    rank: int,
    whole: Collection[tuple[int, ...]] = (),
) -> tuple[str, Strategy, Holdings]:
    """Say what learns, part by part, and what it takes to hold it.

    A part in which some weights learn counts as if all of them did: an upper bound.

    Args:
        config: of the model.
        strategy: a name, `qlora` among them, or rules.
        rank: of adapters.
        whole: shapes that are never held in 4 bits, whatever the rules say.
    """
    name = strategy if isinstance(strategy, str) else "rules"
    fates = fates_of(config, rules_of(strategy), rank, whole)
    learning = Strategy(*(_part(fates, part) for part in ("vision", "projector", "language")))
    return name, learning, count_holdings(fates)


def _part(fates: Sequence[Fate], part: str) -> Learning:
    own = [fate for fate in fates if fate.weight.name.startswith(f"{part}.")]
    rank = max(fate.adapter_rank for fate in own)
    if any(fate.learns for fate in own):
        return Learning(weights=True, adapter_rank=rank)
    return Learning(weights=False, adapter_rank=rank) if rank else NOTHING
