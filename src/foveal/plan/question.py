"""A recipe -> what a plan is made of: the model's sizes, the data's, and epochs of rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from foveal.adapt.quantize import FourBits, bare_model, inspect_four_bits, wants_four_bits
from foveal.adapt.strategy import rules_of
from foveal.config import Recipe, Rule
from foveal.data.dataset import Dataset, read_training_examples, training_files
from foveal.data.row_planning.groups import Row
from foveal.data.rows import RowPlanner
from foveal.data.turn_processor import read_as
from foveal.errors import ConfigError
from foveal.machine import pick_device
from foveal.models.family import Family, LoadedModel
from foveal.models.loading import load_without_weights, refuse_compressed
from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor
from foveal.models.phi3_vision.seam import FAMILY as PHI3_VISION
from foveal.models.phi3_vision.tiny import TOKENIZER
from foveal.models.shared_rows import FASTEST
from foveal.plan.epoch import (
    Epoch,
    RowCounts,
    count_row,
    make_row_planner,
    plan_steps,
)
from foveal.plan.hardware import Hardware
from foveal.plan.model_costs.asked import AskedModel, asked_before
from foveal.plan.setup import Attention, Setup
from foveal.train.engines import check_sharding, engine_name
from foveal.train.optim import check_cuts, count_steps
from foveal.train.reference_answers import missing_steps

PUBLISHED = ("microsoft/Phi-3.5-vision-instruct", "microsoft/Phi-3-vision-128k-instruct")
"""Whose sizes and tokenizer come with this package: a plan for them downloads nothing."""

TINY = "phi3-vision-tiny"
"""A recipe's `model` that is made from nothing: small, with random weights."""

ModelLoader = Callable[[Recipe], LoadedModel]


@dataclass
class Question:
    """A recipe and its data; epochs are planned once for each world size and budget."""

    recipe: Recipe
    family: Family
    config: Any
    processor: Any
    dataset: Dataset
    _epochs: dict[tuple[int, int], Epoch] = field(default_factory=dict)
    _readings: dict[tuple[int, int], Epoch] = field(default_factory=dict)

    def planner(self, world_size: int, tokens_per_pass: int | None = None) -> RowPlanner:
        """Make the planner of a run."""
        recipe = self.recipe
        if tokens_per_pass:
            train = recipe.train.model_copy(update={"tokens_per_pass": tokens_per_pass})
            recipe = recipe.model_copy(update={"train": train})
        return make_row_planner(recipe, self.dataset, world_size, self.family, self.processor)

    def epoch(self, world_size: int, tokens_per_pass: int | None = None) -> Epoch:
        """Run the planner over an epoch."""
        key = (world_size, tokens_per_pass or self.recipe.train.tokens_per_pass)
        if key not in self._epochs:
            planner = self.planner(*key)
            self._epochs[key] = plan_steps(planner, self._targets, range(planner.steps_per_epoch))
        return self._epochs[key]

    def reading(self, world_size: int, tokens_per_pass: int | None = None) -> Epoch | None:
        """Plan the steps whose rows are read before the first, to compare with; none: no step's."""
        if not (self.recipe.learns_pairs and self.recipe.preference.compares):
            return None
        key = (world_size, tokens_per_pass or self.recipe.train.tokens_per_pass)
        if key not in self._readings:
            planner = self.planner(*key)
            nothing = np.full(len(self.dataset.examples), np.nan, np.float32)
            steps = missing_steps(planner, self.steps, nothing)
            whole = steps == list(range(planner.steps_per_epoch))
            made = self.epoch(*key) if whole else plan_steps(planner, self._targets, steps)
            self._readings[key] = made
        return self._readings[key]

    def count(self, row: Row) -> RowCounts:
        """Count what is in a row."""
        return count_row(row, self.dataset.sizes, self._targets)

    @cached_property
    def _targets(self) -> NDArray[np.int32]:
        return self.dataset.examples.targets

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return count_steps(self.planner(1).steps_per_epoch, self.recipe.train)

    def setup(self, hardware: Hardware, gpus: int, nodes: int) -> Setup:
        """Say how the recipe would run there; `auto` settings are decided as a run decides them."""
        recipe = self.recipe
        if recipe.precision not in hardware.matrix_flops:
            raise ConfigError(
                f"precision={recipe.precision}: {hardware.name} does not compute in it; "
                f"choose from {', '.join(hardware.matrix_flops)}"
            )
        engine = engine_name(recipe.engine, gpus * nodes)
        check_sharding(engine, recipe.sharding)
        if engine in ("zero2", "fsdp2"):
            check_cuts(recipe.train.optimizer)
        fastest: Attention = FASTEST["cpu" if hardware.is_cpu else "cuda"]
        again = recipe.train.recompute
        return Setup(
            self._ask(recipe.strategy, hardware),
            recipe.precision,
            "blocks" if again == "auto" else again,
            engine,
            fastest if recipe.attention == "auto" else recipe.attention,
            gpus,
            nodes,
            recipe.train.optimizer,
            recipe.sharding,
        )

    def with_strategy(self, setup: Setup, strategy: str, hardware: Hardware) -> Setup:
        """Let another part of the model learn."""
        return replace(setup, model=self._ask(strategy, hardware))

    def _ask(self, strategy: str | Sequence[Rule], hardware: Hardware) -> AskedModel:
        recipe, rules = self.recipe, rules_of(strategy)
        model = AskedModel(
            self.config,
            self.family,
            self.processor,
            strategy,
            recipe.lora,
            self._four_bits(rules).wrong if hardware.measured else frozenset(),
            double=recipe.quantization.double,
        )
        model = asked_before(model)
        assert model.holdings  # a rule that decides for nothing is refused before all else
        return model

    def _four_bits(self, rules: Sequence[Rule]) -> FourBits:
        """Find the layers that rules ask for in 4 bits, and which of them this machine spoils."""
        settings, precision = self.recipe.quantization, self.recipe.precision
        if not wants_four_bits(rules):
            return FourBits()
        model = bare_model(self.config)
        return inspect_four_bits(model, self.family, rules, settings, precision, pick_device())

    def left_whole(self, hardware: Hardware) -> list[str]:
        """Say which layers a run on this machine would not hold in 4 bits; empty: none such."""
        rules = rules_of(self.recipe.strategy)
        return self._four_bits(rules).lines() if hardware.measured else []


def ask(recipe: Recipe, load_model: ModelLoader) -> Question:
    """Read a recipe's model sizes and data; no weights are loaded and no image is opened.

    Args:
        recipe: to plan.
        load_model: makes the model that stands in no folder, `phi3-vision-tiny`.

    Raises:
        ConfigError: the recipe names no data.
        ModelError: the model's sizes cannot be read.
    """
    if not recipe.data.train_files:
        raise ConfigError("data.train is missing; give a JSONL file, data.train=...")
    if recipe.model == TINY and not Path(TINY).exists():
        made = load_model(recipe)
        family, config, processor = made.family, made.model.config, made.processor
    else:
        family, config, processor = read_model(recipe)
    files = training_files(recipe, recipe.run / ".cache")
    _, dataset = read_training_examples(recipe, files, processor)
    return Question(recipe, family, config, processor, dataset)


def read_model(recipe: Recipe) -> tuple[Family, Any, Any]:
    """Read all of a recipe's model but its weights: family, configuration and processor.

    Raises:
        ConfigError: no run can learn from its weights.
        ModelError: they cannot be read.
    """
    name, data = recipe.model, recipe.data
    if name in PUBLISHED and not Path(name).exists():
        family: Family = PHI3_VISION
        config, processor = published_model(data.num_crops)
    else:
        refuse_compressed(name)
        family, config, processor = load_without_weights(name, data.image_budget)
    read_as(processor, data)
    return family, config, processor


def published_model(num_crops: int) -> tuple[Any, Any]:
    """Make the published models' configuration and processor, of files that come with this package.

    Args:
        num_crops: of the processor.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    return Phi3VisionConfig(), Phi3VisionProcessor(Phi3VisionImageProcessor(num_crops), tokenizer)
