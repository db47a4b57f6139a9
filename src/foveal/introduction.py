"""A run that is about to learn -> what it says first, here and to its trackers."""

from collections.abc import Callable, Iterator
from pathlib import Path

from foveal.config import Recipe
from foveal.data.dataset import Dataset
from foveal.data.rows import Plan
from foveal.evaluate.kept import SCORES, is_of_run
from foveal.evaluate.prediction import Scores, read_scores
from foveal.machine import describe_machine
from foveal.storage import read_object, write_json
from foveal.train.checkpoint import Progress
from foveal.train.engines.one_process import Engine
from foveal.train.optim import warmup_steps
from foveal.train.records.trackers import Trackers


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
    before = read_object(file).get("image_backend", image_backend)
    said = []
    if before != image_backend:
        said.append(
            f"The run began with images read by {before}, now it is {image_backend}, whose pixels "
            "differ a little; install or remove torchvision to go on as it began"
        )
    write_json(file, describe_machine() | {"image_backend": image_backend})
    return said


def open_trackers(
    recipe: Recipe,
    dataset: Dataset,
    plan: Plan,
    steps: tuple[int, int],
    world_size: int,
    tell: Callable[[str], None],
) -> Trackers:
    """Tell the trackers of a run what is run, and on what; called by the main process alone.

    Args:
        recipe: of the run.
        dataset: learnt from.
        plan: of the steps.
        steps: the first one to be taken, and how many there are.
        world_size: processes of the run.
        tell: says a line that is to be noticed.

    Raises:
        UserError: a tracker cannot be opened.
    """
    numbers = {
        "steps": steps[1],
        "steps_a_pass": plan.steps_per_epoch,
        "examples": len(dataset.examples),
        "images": len(dataset.images),
        "processes": world_size,
    }
    trackers = Trackers(recipe, steps, numbers, _scored(recipe.run, steps), tell)
    files = ("recipe.yaml", "data.json", "machine.json")
    trackers.attach([recipe.run / name for name in files])
    return trackers


def _scored(run: Path, steps: tuple[int, int]) -> dict[int, Scores]:
    """Read the scores that a run's folder holds of its steps; of the last one where it is taken."""
    first_step, total = steps
    at = {"before": 0} | ({"after": total} if first_step == total else {})
    files = (run / "evaluation").glob(f"*/{SCORES}")
    return {
        at[name] if name in at else int(name.removeprefix("step-")): read_scores(file)
        for file in files
        if (name := file.parent.name) in at or (is_of_run(name) and name != "after")
    }
