"""Case -> a model and the optimizer step that is measured, our way or the recipe's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from foveal.bench.random_page import (
    BenchSize,
    LetterProcessor,
    find_size,
    make_config,
    make_model,
    make_random_page,
)
from foveal.bench.recipe_step import RecipeInputs, RecipeWay, recipe_inputs
from foveal.config import LoraSettings, TrainSettings
from foveal.data.batch import build_batch
from foveal.data.forward_inputs import Batch
from foveal.data.rows import Plan
from foveal.machine import Precision
from foveal.models.family import LoadedModel
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.shared_rows import choose_attention
from foveal.plan.epoch import count_row, targets_of
from foveal.plan.model_costs.asked import AskedModel, asked_before
from foveal.plan.model_costs.terms import PassCosts
from foveal.plan.model_costs.work import Ask
from foveal.train.engines.one_process import Engine
from foveal.train.learner import make_learner
from foveal.train.recompute import Recompute
from foveal.train.step import train_step

Way = Literal["recipe", "separate", "shared", "light", "recompute"]
RECOMPUTE: dict[Way, Recompute] = {"light": "light", "recompute": "blocks"}
"""Way -> what it makes again in the backward pass; the others make nothing again."""

SETTINGS = TrainSettings()
LORA = LoraSettings()


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    size: str
    strategy: str
    questions: int
    """Of the one page; an optimizer step is taken over all of them."""

    way: Way
    """`recipe`; ours with a page for each question; with all questions behind one page; the same
    with what is cheap made again in the backward pass; with whole blocks run again."""

    precision: Precision = "float32"
    attention: str = "auto"
    """As in a recipe of ours; `auto` of the recipe's way is eager."""

    optimizer: str = "adamw"


class Side:
    """One way of one case, ready to take steps."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        size = find_size(case.size)
        processor = LetterProcessor(size)
        dataset = make_random_page(size, case.questions, folder)
        plan = Plan(
            dataset.sizes,
            examples_per_step=case.questions,
            tokens_per_pass=size.tokens_per_pass,
            share_images=case.way not in ("recipe", "separate"),
        )
        planned = plan.step(0).ranks[0]
        rows = [build_batch(row, dataset, processor) for row in planned]
        targets = targets_of(dataset.examples)
        self.counts = tuple(count_row(row, dataset.sizes, targets) for row in planned)
        """What is in each of our rows, as a plan counts it."""
        attention = "eager" if case.attention == "auto" else case.attention
        self.model = make_model(size)
        self.model.set_attn_implementation(choose_attention(case.attention))
        self.engine = Engine(case.precision)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # adapters begin at random
            learner = make_learner(
                self.engine,
                LoadedModel(self.model, processor, FAMILY),
                case.strategy,
                SETTINGS.model_copy(update={"optimizer": case.optimizer}),
                LORA,
                RECOMPUTE.get(case.way, "none"),
                partial(RecipeWay, attention=attention) if case.way == "recipe" else None,
            )
        self.optimizer = learner.make_optimizer()
        self.way = learner.loss.train()
        _make_state(self.optimizer)
        self.tokens = sum(row.tokens for row in rows)
        """Of the examples, shared ones counted once for each."""
        self.rows: Sequence[Batch] | None = None if case.way == "recipe" else rows
        self.inputs: Sequence[RecipeInputs] = (
            [
                recipe_inputs(dataset, example, processor).to(self.engine.device)
                for example in range(case.questions)
            ]
            if case.way == "recipe"
            else []
        )

    @cached_property
    def operations(self) -> float:
        """Useful ones of a step: nothing twice, and of attention the pairs that see each other."""
        costs = costs_of(find_size(self.case.size), self.case.strategy)
        return sum(costs.operations(row).total for row in self.counts)

    def step(self) -> float:
        """Take an optimizer step; returns the mean loss before it."""
        if self.rows is None:
            loss = recipe_step(
                self.engine,
                self.way,
                self.optimizer,
                self.inputs,
                len(self.inputs),
                SETTINGS.gradient_clip,
            )
        else:
            loss = train_step(
                self.engine, self.way, self.optimizer, self.rows, SETTINGS.gradient_clip
            ).loss
        if self.engine.device.type != "cpu":
            torch.accelerator.synchronize()
        return loss


def recipe_step(
    engine: Engine,
    way: nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: Iterable[RecipeInputs],
    num_examples: int,
    gradient_clip: float,
) -> float:
    """Take one optimizer step as the recipe does: a pass for each example, gradients added up.

    Returns:
        The mean loss of the examples, before the step.
    """
    total = 0.0
    for example in examples:
        with engine.autocast():
            loss = way(example) / num_examples
        engine.backward(loss)
        total += float(loss.detach())
    engine.clip(optimizer, gradient_clip)
    engine.advance(optimizer)
    return total


def costs_of(size: BenchSize, strategy: str, goes_back: bool = True) -> PassCosts:
    """Ask a model of a size what its own code multiplies in a pass, or in its forward half."""
    processor = LetterProcessor(size)
    model = AskedModel(make_config(size), FAMILY, processor, strategy, LORA, goes_back=goes_back)
    return asked_before(model).costs(Ask("float32", "flex", "none"))


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make its state before anything is measured; no weight moves."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
