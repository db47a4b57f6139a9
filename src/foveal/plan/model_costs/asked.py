"""A configuration and rules -> what a model holds and what its passes cost, asked of the model."""

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from foveal.adapt.quantize import Shape
from foveal.adapt.strategy import hold_frozen_weights, rules_of
from foveal.config import LoraSettings, Rule
from foveal.errors import ConfigError, one_line
from foveal.machine import DTYPES
from foveal.models.family import Family
from foveal.plan.model_costs.hollow import Hollow, make_hollow
from foveal.plan.model_costs.terms import PassCosts
from foveal.plan.model_costs.weights import (
    Assigned,
    Holdings,
    assign_without_weights,
    count_holdings,
)
from foveal.plan.model_costs.work import SIZES, Ask, ask_model


@dataclass(eq=False)
class AskedModel:
    """A model of which nothing is loaded but what it is made of; each answer is worked out once."""

    config: Any
    family: Family
    processor: Any
    strategy: str | Sequence[Rule]
    lora: LoraSettings = field(default_factory=LoraSettings)
    whole: Collection[Shape] = ()
    """Shapes of layers that are never held in 4 bits, whatever the rules say."""

    goes_back: bool = True
    """Whether passes are run back too; else what that multiplies and holds is not known."""

    double: bool = True
    """Whether the scales of weights in 4 bits are held in 8."""

    _hollow: dict[str, tuple[Any, Hollow]] = field(default_factory=dict)
    _costs: dict[Ask, PassCosts] = field(default_factory=dict)

    @cached_property
    def _said(self) -> tuple[object, ...]:
        """All that an answer hangs on."""
        shapes = [self.processor.shape(*size) for size in SIZES]
        settings = (
            self.strategy,
            self.lora,
            sorted(self.whole),
            self.goes_back,
            self.double,
            shapes,
        )
        return self.config.to_json_string(), self.family.route, str(settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AskedModel) and self._said == other._said

    def __hash__(self) -> int:
        return hash(self._said)

    @cached_property
    def reading(self) -> "AskedModel":
        """The same model in passes that are not run back."""
        return replace(self, goes_back=False, _costs={})

    @cached_property
    def holdings(self) -> Holdings:
        """What a process has to hold.

        Raises:
            ConfigError: a rule decides for no weight, or nothing learns.
        """
        return count_holdings(self._assigned, self.double)

    @cached_property
    def _assigned(self) -> Assigned:
        return self._assign()

    def _assign(self) -> Assigned:
        rules = rules_of(self.strategy)
        # A model changes what its configuration says of attention; a run's own goes on as it is.
        config = deepcopy(self.config)
        return assign_without_weights(config, self.family, rules, self.lora, self.whole)

    def costs(self, ask: Ask) -> PassCosts:
        """Say what a pass costs.

        Raises:
            ConfigError: the model's code cannot run on shapes alone.
        """
        if ask not in self._costs:
            try:
                self._costs[ask] = ask_model(*self._take(ask), ask, self.goes_back)
            except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
                said = one_line(error, 200)
                raise ConfigError(
                    f"what a pass of model_type {self.config.model_type!r} keeps and takes cannot "
                    f"be planned ({type(error).__name__}: {said}); foveal train runs it anyway"
                ) from error
        return self._costs[ask]

    def _take(self, ask: Ask) -> tuple[Any, Family, Any, Hollow]:
        """Make the model hollow, once for each number format."""
        key = ask.precision if self.family.route == "rows" else str(ask)
        if key not in self._hollow:
            assert self.holdings  # counted before what they are of is made hollow
            model = (self._assign() if self._hollow else self._assigned).model
            if not self.lora.dora:
                hold_frozen_weights(model, DTYPES[ask.precision])
            mode = Hollow()
            make_hollow(model, mode)
            self._hollow[key] = model, mode
        model, mode = self._hollow[key]
        return model, self.family, self.processor, mode


@lru_cache(maxsize=16)
def asked_before(model: AskedModel) -> AskedModel:
    """Give the first of all equal models: it may know the answers already."""
    return model
