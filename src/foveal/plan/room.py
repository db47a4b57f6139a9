"""A run's planner and settings -> what is made again in the backward pass, so that it fits."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np

from foveal.adapt.quantize import read_record
from foveal.config import Recipe
from foveal.data.dataset import Dataset
from foveal.data.rows import Plan
from foveal.errors import ConfigError
from foveal.machine import free_memory
from foveal.models.family import Family, LoadedModel
from foveal.models.shared_rows import attention_of
from foveal.plan.epoch import count_row, targets_of
from foveal.plan.estimate import SLACK, weigh
from foveal.plan.memory import CPU_SLACK, estimate_memory
from foveal.plan.model_costs.asked import AskedModel, asked_before
from foveal.plan.setup import Attention, Engine, Setup, engine_name
from foveal.train.engines.one_process import Engine as RunEngine
from foveal.train.recompute import Recompute

STEPS_LOOKED_AT = 64
"""Steps of an epoch, evenly spread: their longest row is nearly the longest of all, since rows are
filled. Beside them the steps of the longest example and of the one with most crops."""


def choose_recompute(
    recipe: Recipe,
    loaded: LoadedModel,
    plan: Plan,
    dataset: Dataset,
    engine: RunEngine,
    tell: Callable[[str], None],
) -> Recompute:
    """Decide what a run makes again in the backward pass instead of keeping it.

    Args:
        recipe: of the run.
        loaded: its model.
        plan: of its steps.
        dataset: that the plan is of.
        engine: of the run.
        tell: says a line that is to be noticed.
    """
    if recipe.train.recompute != "auto":
        return recipe.train.recompute
    config, device = loaded.model.config, engine.device
    bytes_with = partial(
        _training_bytes,
        recipe,
        config,
        loaded.family,
        loaded.processor,
        plan,
        dataset,
        engine_name(recipe.engine, engine.world_size),
        attention_of(config),
        CPU_SLACK if device.type == "cpu" else 0.0,
        loaded.model.device.type == device.type,
    )
    # Of several processes the one with least room decides: blocks are alike in all of them.
    free = min(engine.gather([free_memory(device)]))
    try:
        return cheapest_that_fits(lambda one: bytes_with(recompute=one), free)
    except ConfigError as error:  # a model whose code looks at its numbers cannot be asked
        tell(f"train.recompute=auto: {error}")
        return "none" if device.type == "cpu" else "blocks"


def cheapest_that_fits(bytes_with: Callable[[Recompute], int], free: int) -> Recompute:
    """Choose what is made again in the backward pass: no more than must be.

    Args:
        bytes_with: what a rank will need, see `_training_bytes`.
        free: bytes of the device.
    """
    *cheaper, last = get_args(Recompute)
    return next((one for one in cheaper if bytes_with(one) <= free), last)


def _training_bytes(
    recipe: Recipe,
    config: Any,
    family: Family,
    processor: Any,
    plan: Plan,
    dataset: Dataset,
    engine: Engine,
    attention: str,
    slack: float,
    holds_weights: bool,
    recompute: Recompute,
) -> int:
    """Estimate what a rank will need beside what it holds.

    Args:
        recipe: of the run.
        config: of the model.
        family: of the model.
        processor: of the model.
        plan: of the run.
        dataset: that the plan is of.
        engine: of the run.
        attention: as the model has it.
        slack: holes that the allocator keeps, as a share of what comes and goes.
        holds_weights: whether the model stands on the device; one for a GPU is first read into the
            memory of its host.
        recompute: what is made again in the backward pass.
    """
    whole = read_record(recipe.run)
    # Where all is kept, what comes and goes on the way back is little beside it: not asked about.
    back = recompute != "none"
    double = recipe.quantization.double
    model = AskedModel(config, family, processor, recipe.strategy, recipe.lora, whole, back, double)
    setup = Setup(
        asked_before(model),
        recipe.precision,
        recompute,
        engine,
        next((kind for kind in get_args(Attention) if kind in attention), "blocks"),
        plan.world_size,
        1,
        recipe.train.optimizer,
        recipe.sharding,
    )
    targets = targets_of(dataset.examples)
    steps = [plan.step(index) for index in sorted(_steps_looked_at(plan))]
    rows = [
        count_row(row, plan.sizes, targets)
        for step in steps
        for rank in step.ranks
        for row in rank
        if row.groups
    ]
    worst = max(rows, key=lambda row: weigh(setup, row))
    passes = max(len(rank) for step in steps for rank in step.ranks)
    memory = estimate_memory(setup, worst, passes, 0, 0, slack)
    held = memory.weights_bytes if holds_weights else 0
    return int((memory.total_bytes - held) / (1 - SLACK))


def _steps_looked_at(plan: Plan) -> set[int]:
    """Choose steps of the first epoch, alike on every rank."""
    number, sizes = plan.steps_per_epoch, plan.sizes
    count = min(STEPS_LOOKED_AT, number)
    crops = np.zeros(len(sizes.tokens), np.int64)
    owners = np.repeat(np.arange(len(crops)), np.diff(sizes.images.offsets))
    np.add.at(crops, owners, sizes.image_crops[sizes.images.values])
    order = np.concatenate([plan.examples(index) for index in range(number)])
    extremes = {
        int(measure[order].argmax()) // plan.examples_per_step for measure in (sizes.tokens, crops)
    }
    return {index * number // count for index in range(count)} | extremes
