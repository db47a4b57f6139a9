"""A run that is about to learn -> what it says first, and notes of its machine."""

from collections.abc import Iterator
from pathlib import Path

from foveal.config import Recipe
from foveal.data.dataset import Dataset
from foveal.data.rows import Plan
from foveal.machine import describe_machine, read_machine
from foveal.storage import write_json
from foveal.train.checkpoint import Progress
from foveal.train.engines.one_process import Engine
from foveal.train.optim import warmup_steps


def introduction(
    recipe: Recipe,
    engine: Engine,
    dataset: Dataset,
    plan: Plan,
    steps: tuple[int, int],
    stored: Progress | None,
) -> Iterator[str]:
    """Say what is going to happen.

    Args:
        recipe: of the run.
        engine: of the run.
        dataset: learnt from.
        plan: of the steps.
        steps: the first one to be taken, and how many there are.
        stored: where the run stands, if it goes on.
    """
    first_step, total_steps = steps
    if first_step == total_steps:
        yield f"Finished: all {total_steps:,} steps of {recipe.run} are taken"
        return
    if stored:
        yield f"Going on from {recipe.run / 'checkpoints'}, step {first_step}"
    if stored and stored.world_size != engine.world_size:
        yield (
            f"It ran on {stored.world_size} processes, now on {engine.world_size}: each "
            "step still has the same examples, but its sums are rounded in another order"
        )
    yield (
        f"{dataset.sizes.num_sets:,} examples, {len(dataset.images):,} pictures; "
        f"steps {first_step} to {total_steps}, {plan.steps_per_epoch:,} a pass; "
        f"{engine.device}, {recipe.precision}"
    )
    asked, given = recipe.train.warmup_steps, warmup_steps(total_steps, recipe.train)
    if given < asked:
        yield (
            f"train.warmup_steps={asked} is more than half of the run: the rate climbs in the "
            f"first {given} of {total_steps} steps"
        )


def write_machine(file: Path, image_backend: str) -> list[str]:
    """Note what a run goes on with; say so where images are now read otherwise."""
    before = read_machine(file).get("image_backend", image_backend)
    said = []
    if before != image_backend:
        said.append(
            f"The run began with images read by {before}, now it is {image_backend}, whose pixels "
            "differ a little; install or remove torchvision to go on as it began"
        )
    write_json(file, describe_machine() | {"image_backend": image_backend})
    return said
