"""A run's planner and settings -> what is made again in the backward pass, so that it fits."""

import os
from collections.abc import Callable
from typing import get_args

import numpy as np

from foveal.adapt.quantize import read_record
from foveal.config import Recipe
from foveal.data.dataset import Dataset
from foveal.data.rows import RowPlanner
from foveal.errors import ConfigError
from foveal.machine import free_memory
from foveal.models.family import LoadedModel
from foveal.models.shared_rows import attention_of
from foveal.plan.epoch import plan_steps
from foveal.plan.memory import CPU_SLACK, SLACK, estimate_memory
from foveal.plan.model_costs.asked import AskedModel, asked_before
from foveal.plan.setup import Attention, Setup
from foveal.train.engines import engine_name
from foveal.train.engines.one_process import Engine
from foveal.train.recompute import Recompute

STEPS_LOOKED_AT = 64
"""Steps of an epoch, evenly spread: their longest row is nearly the longest of all, since rows are
filled. Beside them the steps of the longest example and of the one with most crops."""


def choose_recompute(
    recipe: Recipe,
    loaded: LoadedModel,
    planner: RowPlanner,
    dataset: Dataset,
    engine: Engine,
    tell: Callable[[str], None],
) -> Recompute:
    """Decide what a run makes again in the backward pass instead of keeping it.

    Args:
        recipe: of the run.
        loaded: its model.
        planner: of its steps.
        dataset: that the plan is of.
        engine: of the run.
        tell: says a line that is to be noticed.
    """
    if recipe.train.recompute != "auto":
        return recipe.train.recompute
    device = engine.device
    slack = CPU_SLACK if device.type == "cpu" else 0.0
    # A model for a GPU is first read into the memory of its host.
    holds_weights = loaded.model.device.type == device.type
    looked_at = plan_steps(planner, dataset.examples.targets, sorted(_steps_looked_at(planner)))

    def bytes_needed(recompute: Recompute) -> int:
        """Estimate what a rank will need beside what it holds."""
        setup = run_setup(recipe, loaded, engine, recompute)
        worst = max(looked_at.rows, key=setup.costs.weigh)
        memory = estimate_memory(setup, worst, looked_at.most_rows, 0, 0, slack)
        held = memory.weights_bytes if holds_weights else 0
        return int((memory.total_bytes - held) / (1 - SLACK))

    # Of several processes the one with least room decides: blocks are alike in all of them.
    # Those of one machine share its memory; a GPU is one's own.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    free = min(engine.gather([free_memory(device) // sharing]))
    *cheaper, last = get_args(Recompute)
    try:
        return next((one for one in cheaper if bytes_needed(one) <= free), last)
    except ConfigError as error:  # a model whose code looks at its numbers cannot be asked
        tell(f"train.recompute=auto: {error}")
        return "none" if device.type == "cpu" else "blocks"


def run_setup(recipe: Recipe, loaded: LoadedModel, engine: Engine, recompute: Recompute) -> Setup:
    """Say how a run is set up; what is cut within nodes is cut over one node's processes."""
    config, attention = loaded.model.config, attention_of(loaded.model.config)
    model = AskedModel(
        config,
        loaded.family,
        loaded.processor,
        recipe.strategy,
        recipe.lora,
        read_record(recipe.run),
        # Where all is kept, what comes and goes on the way back is little beside it: not asked.
        goes_back=recompute != "none",
        double=recipe.quantization.double,
    )
    return Setup(
        asked_before(model),
        recipe.precision,
        recompute,
        engine_name(recipe.engine, engine.world_size),
        next((kind for kind in get_args(Attention) if kind in attention), "blocks"),
        engine.world_size // engine.copies,
        engine.copies,
        recipe.train.optimizer,
        recipe.sharding,
    )


def _steps_looked_at(planner: RowPlanner) -> set[int]:
    """Choose steps of the first epoch, alike on every rank."""
    number, sizes = planner.steps_per_epoch, planner.sizes
    count = min(STEPS_LOOKED_AT, number)
    crops = np.zeros(len(sizes.tokens), np.int64)
    owners = np.repeat(np.arange(len(crops)), np.diff(sizes.images.offsets))
    np.add.at(crops, owners, sizes.image_crops[sizes.images.values])
    order = np.concatenate([planner.examples(index) for index in range(number)])
    extremes = {
        int(measure[order].argmax()) // planner.examples_per_step
        for measure in (sizes.tokens, crops)
    }
    return {index * number // count for index in range(count)} | extremes
