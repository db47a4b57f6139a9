"""A model, a strategy and an engine -> what learns: its weights, its loss and its optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from foveal.adapt.strategy import Assignment, assign, hold_frozen_weights, rules_of
from foveal.config import LoraSettings, Rule, TrainSettings
from foveal.data.turn_processor import TurnProcessor
from foveal.machine import DTYPES
from foveal.models.family import LoadedModel
from foveal.train.engines.one_process import Engine
from foveal.train.loss import RowLoss
from foveal.train.objective import ANSWERS, Objective
from foveal.train.optim import build_optimizer
from foveal.train.recompute import Recompute, recompute_blocks

BLANK_SIZE = (64, 64)
"""Width and height of an image that shows nothing, pixels."""


@dataclass(frozen=True)
class Learner:
    """A model that is ready to learn."""

    engine: Engine
    loaded: LoadedModel
    assignments: Sequence[Assignment]
    """What becomes of each weight."""

    settings: TrainSettings

    objective: Objective = ANSWERS
    """What is made small."""

    @property
    def model(self) -> Any:
        """What learns, bare of what the engine wraps around it."""
        return self.loaded.model

    @property
    def loss(self) -> nn.Module:
        """Row -> its loss, as the engine runs it."""
        module: nn.Module = self.engine.module
        return module

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made when first asked for: some engines run the model in another way from then on."""
        cut = self.engine.cuts_state
        return self.engine.wrap_optimizer(
            build_optimizer(self.model, self.assignments, self.settings, cut)
        )


def blank_pixels(processor: TurnProcessor) -> dict[str, Tensor]:
    """Make an image that shows nothing, as the tower takes it."""
    image = Image.new("RGB", BLANK_SIZE)
    return processor.stack([processor.pixels(image)], [processor.shape(*BLANK_SIZE)])


def make_learner(
    engine: Engine,
    loaded: LoadedModel,
    strategy: str | Sequence[Rule],
    train: TrainSettings,
    lora: LoraSettings,
    recompute: Recompute,
    wrap: Callable[[Any], nn.Module] | None = None,
    objective: Objective = ANSWERS,
) -> Learner:
    """Let a strategy's weights learn; changes the model in place.

    Args:
        engine: that runs it.
        loaded: bare.
        strategy: name or rules.
        train: rates and optimizer.
        lora: adapters, where rules ask for them.
        recompute: what blocks compute again in the backward pass instead of keeping it.
        wrap: model -> module that returns a loss; none: `RowLoss`.
        objective: what is made small.
    """
    model, family = loaded.model, loaded.family
    rates = train.learning_rate, train.weight_decay
    assignments = assign(model, family, rules_of(strategy), *rates, lora)
    # A cut has one number format, and DoRA measures the weights that it leaves alone.
    if not (engine.cuts_state or lora.dora):
        hold_frozen_weights(model, DTYPES[engine.precision])
    if recompute == "blocks":
        engine.spare_memory()
    if recompute != "none":
        recompute_blocks(model, family, recompute)
    blank = blank_pixels(loaded.processor) if engine.world_size > 1 else None
    agree = engine.largest if engine.gathers_blocks and family.route != "rows" else None
    loss = wrap(model) if wrap else RowLoss(model, family, blank, agree)
    engine.prepare(loss, family.blocks(model))
    return Learner(engine, loaded, assignments, train, objective)
