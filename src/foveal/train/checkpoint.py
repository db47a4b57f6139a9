"""A run's state -> folders written whole or not at all, and back; the best of them is kept."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveal.config import Recipe, flatten
from foveal.errors import RunError
from foveal.storage import beside, drop_folder, keep_folder, read_object, system_error
from foveal.train.engines.one_process import Engine

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
NUMBERS = "numbers"
"""Key in a file's metadata: what an optimizer keeps besides tensors."""

LOWER_IS_BETTER = ("distance", "error", "loss", "perplexity")
"""Last words of the names of metrics that should be small; all others should be large."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, and what it must be resumed with."""

    step: int
    """Optimizer steps taken."""

    recipe: Mapping[str, Any]
    """What decides the numbers, see `resume_key`."""

    data_fingerprint: str
    world_size: int
    model_fingerprint: str = ""
    """Of the weights that the run began from; those that do not learn are not in checkpoints."""

    loss_scale: Mapping[str, float] | None = None
    """Of fp16: the scale, and how long it has stood."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: Engine,
) -> Path:
    """Write `folder/step-N` beside its place, flush it, rename it.

    Tensors are written whole, under the model's own names, however the run held them: any engine
    and any number of processes can read them. Every random choice follows from (seed, step), so
    no random state is saved.

    Args:
        folder: of all checkpoints.
        progress: of the run.
        model: bare.
        optimizer: of its learning weights.
        engine: whose main process writes; the others help it gather.

    Raises:
        RunError: it cannot be written, in all processes; earlier checkpoints are untouched.
    """
    place = folder / f"step-{progress.step}"
    learning = ((name, one) for name, one in model.named_parameters() if one.requires_grad)
    try:
        for name, tensors in (
            (WEIGHTS, learning),
            (OPTIMIZER, engine.optimizer_state(model, optimizer)),
        ):
            gathered = _gather(tensors, engine)
            engine.by_main(partial(_write_tensors, beside(place) / name, gathered))
            del gathered
        engine.by_main(partial(_finish, place, progress))
    except OSError as error:
        shutil.rmtree(beside(place), ignore_errors=True)
        raise RunError(
            f"cannot write checkpoint {place}: {error.strerror or error}; "
            "free space and run the same command again"
        ) from error
    return place


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and what kills left torn."""
    for older in checkpoints(folder)[:-keep]:
        if older != best:
            drop_folder(older)
    for torn in folder.glob(".step-*"):
        shutil.rmtree(torn)


def checkpoints(folder: Path) -> list[Path]:
    """List whole checkpoints, the oldest first; a renamed copy is a person's own."""
    named = [one for one in folder.glob("step-*") if one.name.removeprefix("step-").isdecimal()]
    found = [one for one in named if (one / STATE).is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Read a checkpoint's step off its name."""
    return int(checkpoint.name.removeprefix("step-"))


def best_checkpoint(run: Path, metric: str | None) -> Path | None:
    """Find the checkpoint with the best score, of those evaluated; the earliest of equals.

    Derived from `evaluation/step-N/scores.json`, which is whole or not there, so that a kill at
    any instant leaves nothing to disagree about.

    Args:
        run: folder of the run.
        metric: a name in its scores.json; none: no checkpoint is the best.

    Returns:
        None where no checkpoint that stands has such a score.
    """
    if not metric:
        return None
    standing = {step_of(one): one for one in checkpoints(run / "checkpoints")}
    scored = {step: _score(run / "evaluation" / one.name, metric) for step, one in standing.items()}
    last = max(standing, default=0)
    if standing and scored[last] is None:
        scored[last] = _score(run / "evaluation" / "after", metric)  # a finished run's last step
    best = _best_step(scored, metric)
    return None if best is None else standing[best]


def explain_stall(run: Path, metric: str | None, evaluations: int | None, step: int) -> str:
    """Say that a score has not become better for some evaluations in a row; empty: it has.

    Derived as the best checkpoint is, from the scores of the steps up to this one: a resumed run
    ends at the step at which an uninterrupted one does.

    Args:
        run: its folder.
        metric: a name in its scores.json.
        evaluations: how many in a row are too many; none: any number is well.
        step: steps taken.
    """
    if not (metric and evaluations):
        return ""
    names = ((one.name.removeprefix("step-"), one) for one in run.glob("evaluation/step-*"))
    steps = {int(name): one for name, one in names if name.isdigit()}
    scored = {at: _score(one, metric) for at, one in steps.items() if at <= step}
    best = _best_step(scored, metric)
    if (
        best is None
        or sum(at > best for at, one in scored.items() if one is not None) < evaluations
    ):
        return ""
    return (
        f"Ended at step {step}: no {metric} in {evaluations} evaluations was better than "
        f"{scored[best]:.3f} at step {best}"
    )


def _best_step(scored: Mapping[int, float | None], metric: str) -> int | None:
    sign = -1.0 if metric.endswith(LOWER_IS_BETTER) else 1.0
    known = [(sign * one, -step) for step, one in scored.items() if one is not None]
    return -max(known)[1] if known else None  # as good is not better


def _score(evaluation: Path, metric: str) -> float | None:
    score = read_object(evaluation / "scores.json").get(metric)
    value = score.get("value") if isinstance(score, dict) else None
    return value if isinstance(value, float | int) and math.isfinite(value) else None


def read_progress(checkpoint: Path) -> Progress:
    """Read where a checkpoint stands.

    Raises:
        RunError: its state cannot be read.
    """
    try:
        return Progress(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{checkpoint / STATE}: {error}; delete this folder to go on from an earlier checkpoint"
        ) from error


def resume_key(recipe: Recipe) -> dict[str, Any]:
    """Everything in a recipe that decides the numbers of a run, by dotted name."""
    free = {
        "run",
        "engine",
        "data.cache",
        "data.workers",
        "log.trackers",
        "log.project",
        "data.validation",
        "data.images",
        "data.object_cache",
        "data.object_cache_gb",
        "data.max_bad_fraction",
        "train.best_metric",
        "train.deterministic",
        "train.save_every_steps",
        "train.keep_checkpoints",
        "train.evaluate_every_steps",
        "train.recompute",
        "train.stop_after_worse",
        "train.max_bad_steps",
        "sharding.gather",
        "sharding.group",
    }
    flat = flatten(recipe.model_dump(mode="json"))
    # Runs that began before there were preferences say nothing of them.
    unread = () if recipe.learns_pairs else ("objective", "preference.")
    return {
        name: value
        for name, value in flat.items()
        if name not in free and not name.startswith(("evaluate.", "published", "base", *unread))
    }


def check_same_run(checkpoint: Path, stored: Progress, now: Progress) -> None:
    """Refuse to go on with another recipe or other data.

    Another number of processes is no other run: a step is the same set of examples on any. Nor is a
    setting that the run did not know yet, as long as it is at its default.

    Raises:
        RunError: names what changed.
    """
    was = {**resume_key(Recipe(model="", run=Path())), **stored.recipe}
    changed = [
        f"{name} was {was.get(name)!r}, is {now.recipe.get(name)!r}"
        for name in sorted(stored.recipe.keys() | now.recipe.keys())
        if was.get(name) != now.recipe.get(name)
    ]
    if stored.data_fingerprint != now.data_fingerprint:
        changed.append("the training data changed")
    if stored.model_fingerprint != now.model_fingerprint:
        changed.append("the model to start from has other weights")
    if changed:
        raise RunError(
            f"{checkpoint} belongs to another run: {'; '.join(changed)}; "
            "undo that, choose another run=..., or start anew with --fresh"
        )


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, engine: Engine
) -> None:
    """Put weights and optimizer state back, bit for bit; of sharded ones this process's share.

    Raises:
        RunError: a file cannot be read, or does not fit.
    """
    learning = {name: one for name, one in model.named_parameters() if one.requires_grad}
    try:
        with safe_open(checkpoint / WEIGHTS, "pt") as weights, torch.no_grad():
            if set(weights.keys()) != learning.keys():
                odd = sorted(set(weights.keys()) ^ learning.keys())[0]
                raise RunError(
                    f"{checkpoint}: its weights are not those that learn now, such as {odd}"
                )
            for name, parameter in learning.items():
                parameter.copy_(engine.share_of(weights.get_tensor(name), parameter))
        engine.restore_optimizer(model, optimizer, _read_state(checkpoint / OPTIMIZER))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{checkpoint}: {error}; delete it to go on from an earlier one") from error


def _read_state(path: Path) -> Iterator[tuple[str, Tensor | float]]:
    with safe_open(path, "pt") as file:
        yield from json.loads((file.metadata() or {}).get(NUMBERS, "{}")).items()
        for key in file.keys():  # noqa: SIM118 - a file, not a mapping
            yield key, file.get_tensor(key)


def _gather(
    tensors: Iterable[tuple[str, Tensor | float]], engine: Engine
) -> dict[str, Tensor | float]:
    """Bring sharded tensors together on the CPU of the main process, one after the other."""
    gathered: dict[str, Tensor | float] = {}
    for name, value in tensors:
        whole = engine.whole_tensor(value) if isinstance(value, Tensor) else value
        if engine.is_main:
            gathered[name] = whole.detach().cpu() if isinstance(whole, Tensor) else whole
    return gathered


def _write_tensors(path: Path, values: Mapping[str, Tensor | float]) -> None:
    """Write tensors, and plain numbers beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in values.items():
        if isinstance(value, Tensor):
            # What weights have in common, as 8-bit optimizers do, is written with each of them.
            tensors[name] = value.clone() if value.data_ptr() in seen else value.contiguous()
            seen.add(value.data_ptr())
    save_tensors(path, tensors, {NUMBERS: json.dumps(numbers)})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of tensors.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # of the disk: the tensors are as they should be
        number = system_error(error) or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _finish(place: Path, progress: Progress) -> None:
    text = json.dumps(asdict(progress), indent=1)
    (beside(place) / STATE).write_text(text, encoding="utf-8")  # the folder is whole or not
    keep_folder(place)
