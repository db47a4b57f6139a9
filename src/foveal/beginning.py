"""A run that begins -> it has its folder alone, and says what it will do, also to its trackers."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from foveal.config import Recipe
from foveal.data.dataset import Dataset
from foveal.data.rows import RowPlanner
from foveal.errors import RunError
from foveal.evaluate.kept import SCORES, is_of_run
from foveal.evaluate.prediction import Scores, read_scores
from foveal.machine import describe_machine
from foveal.storage import AtWorkError, read_object, take_lock, write_json
from foveal.train.checkpoint import Progress
from foveal.train.engines.one_process import Engine
from foveal.train.optim import warmup_steps
from foveal.train.records.trackers import Trackers

LOCK = ".lock"
"""In a run's folder: held by the process that is at work in it."""


def drop_parts(run: Path) -> None:
    """Take away what a run that was killed while it wrote a file has left beside it."""
    for folder in (run, *run.glob("evaluation/*")):
        for part in folder.glob(".*.part"):
            if part.is_file():
                part.unlink(missing_ok=True)


def claim_folder(run: Path, fresh: bool, engine: Engine) -> int | None:
    """See, before anything is paid for, that a run has its folder, and has it alone.

    Args:
        run: its folder.
        fresh: whether a former run is kept aside, under another name.
        engine: of the run; its main process claims, and all know alike what comes of it.

    Returns:
        The file that holds the folder, in the main process, until it is released; the
        system lets go of it where a process dies.

    Raises:
        RunError: it cannot be made, or another process is at work in it.
    """
    held = engine.by_main(partial(_take, run, fresh))
    run.mkdir(parents=True, exist_ok=True)  # on a node of its own
    return held


def _take(run: Path, fresh: bool) -> int:
    try:
        if fresh and run.exists():
            os.close(take_lock(run / LOCK, run))
            _set_aside(run)
        return take_lock(run / LOCK, run)
    except AtWorkError as error:
        raise RunError(f"run={run}: {error.strerror}; let it end, or give another") from error
    except OSError as error:
        raise RunError(f"run={run}: {error.strerror}; give a folder to write to") from error


def release_folder(claim: int | None) -> None:
    """Let others have the folder of a run that has ended."""
    if claim is not None:
        os.close(claim)


def _set_aside(run: Path) -> None:
    number = 1
    while (kept := run.with_name(f"{run.name}.before-{number}")).exists():
        number += 1
    run.rename(kept)


def introduction(
    recipe: Recipe,
    engine: Engine,
    dataset: Dataset,
    planner: RowPlanner,
    steps: range,
    stored: Progress | None,
) -> Iterator[str]:
    """Say what is going to happen.

    Args:
        recipe: of the run.
        engine: of the run.
        dataset: learnt from.
        planner: of the steps.
        steps: that are still to be taken; the last one is the run's.
        stored: where the run stands, if it goes on.
    """
    if not steps:
        yield f"Finished: all {steps.stop:,} steps of {recipe.run} are taken"
        return
    if stored:
        yield f"Going on from {recipe.run / 'checkpoints'}, step {steps.start}"
    if stored and stored.world_size != engine.world_size:
        yield (
            f"It ran on {stored.world_size} processes, now on {engine.world_size}: each "
            "step still has the same examples, but its sums are rounded in another order"
        )
    yield (
        f"{dataset.sizes.num_sets:,} examples, {len(dataset.images):,} pictures; "
        f"steps {steps.start} to {steps.stop}, {planner.steps_per_epoch:,} a pass; "
        f"{engine.device}, {recipe.precision}"
    )
    asked, given = recipe.train.warmup_steps, warmup_steps(steps.stop, recipe.train)
    if given < asked:
        yield (
            f"train.warmup_steps={asked} is more than half of the run: the rate climbs in the "
            f"first {given} of {steps.stop} steps"
        )


def write_machine(file: Path, image_backend: str) -> str:
    """Note what a run goes on with; say so where images are now read otherwise."""
    before = read_object(file).get("image_backend", image_backend)
    write_json(file, describe_machine() | {"image_backend": image_backend})
    if before == image_backend:
        return ""
    return (
        f"The run began with images read by {before}, now it is {image_backend}, whose pixels "
        "differ a little; install or remove torchvision to go on as it began"
    )


def open_trackers(
    recipe: Recipe,
    dataset: Dataset,
    planner: RowPlanner,
    steps: range,
    world_size: int,
    tell: Callable[[str], None],
) -> Trackers:
    """Tell the trackers of a run what is run, and on what; called by the main process alone.

    Args:
        recipe: of the run.
        dataset: learnt from.
        planner: of the steps.
        steps: that are still to be taken; the last one is the run's.
        world_size: processes of the run.
        tell: says a line that is to be noticed.

    Raises:
        UserError: a tracker cannot be opened.
    """
    numbers = {
        "steps": steps.stop,
        "steps_a_pass": planner.steps_per_epoch,
        "examples": len(dataset.examples),
        "images": len(dataset.images),
        "processes": world_size,
    }
    trackers = Trackers(recipe, steps, numbers, _scored(recipe.run, steps), tell)
    files = ("recipe.yaml", "data.json", "machine.json")
    trackers.attach([recipe.run / name for name in files])
    return trackers


def _scored(run: Path, steps: range) -> dict[int, Scores]:
    """Read the scores that a run's folder holds of its steps; of the last one where it is taken."""
    at = {"before": 0} | ({} if steps else {"after": steps.stop})
    files = (run / "evaluation").glob(f"*/{SCORES}")
    return {
        at[name] if name in at else int(name.removeprefix("step-")): read_scores(file)
        for file in files
        if (name := file.parent.name) in at or (is_of_run(name) and name != "after")
    }
