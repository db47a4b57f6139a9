"""A run's state -> a folder written whole or not at all, and back: exactly where it stopped."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foveal.errors import RunError

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands, and what it must be resumed with."""

    step: int
    """Optimizer steps taken."""

    recipe: Mapping[str, Any]
    """What decides the numbers, see `resume_key`."""

    data_fingerprint: str
    world_size: int
    loss_scale: float | None = None
    """Of fp16."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write `folder/step-N` beside its place, flush it, rename it; then prune the oldest.

    Every random choice follows from (seed, step), so no random state is saved.

    Raises:
        RunError: it cannot be written; earlier checkpoints are untouched.
    """
    place = folder / f"step-{progress.step}"
    beside = folder / f".step-{progress.step}.part"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        learning = {name: one for name, one in model.named_parameters() if one.requires_grad}
        save_file(_plain(learning), beside / WEIGHTS)
        save_file(_plain(optimizer_tensors(model, optimizer)), beside / OPTIMIZER)
        (beside / STATE).write_text(json.dumps(asdict(progress), indent=1))
        for name in (WEIGHTS, OPTIMIZER, STATE):
            _flush(beside / name)
        _flush(beside)
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write checkpoint {place}: {reason}; free space and run the same command again"
        ) from error
    for older in checkpoints(folder)[:-keep]:
        shutil.rmtree(older)
    return place


def checkpoints(folder: Path) -> list[Path]:
    """List whole checkpoints, the oldest first."""
    found = [one for one in folder.glob("step-*") if (one / STATE).is_file()]
    return sorted(found, key=lambda one: int(one.name.removeprefix("step-")))


def read_progress(checkpoint: Path) -> Progress:
    """Read where a checkpoint stands.

    Raises:
        RunError: its state cannot be read.
    """
    try:
        return Progress(**json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{checkpoint / STATE}: {error}; delete this folder to go on from an earlier checkpoint"
        ) from error


def check_same_run(checkpoint: Path, stored: Progress, now: Progress) -> None:
    """Refuse to go on with another recipe, other data or another number of processes.

    Raises:
        RunError: names what changed.
    """
    changed = [
        f"{name} was {stored.recipe.get(name)!r}, is {now.recipe.get(name)!r}"
        for name in sorted(stored.recipe.keys() | now.recipe.keys())
        if stored.recipe.get(name) != now.recipe.get(name)
    ]
    if stored.data_fingerprint != now.data_fingerprint:
        changed.append("the training data changed")
    if stored.world_size != now.world_size:
        changed.append(f"it ran on {stored.world_size} processes, now on {now.world_size}")
    if changed:
        raise RunError(
            f"{checkpoint} belongs to another run: {'; '.join(changed)}; "
            "undo that, choose another run=..., or start anew with --fresh"
        )


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state back, bit for bit.

    Raises:
        RunError: a file cannot be read, or does not fit.
    """
    try:
        weights, moments = load_file(checkpoint / WEIGHTS), load_file(checkpoint / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{checkpoint}: {error}; delete it to go on from an earlier one") from error
    learning = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if weights.keys() != learning.keys():
        odd = sorted(weights.keys() ^ learning.keys())[0]
        raise RunError(f"{checkpoint}: its weights are not those that learn now, such as {odd}")
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(weights[name])
            state = optimizer.state[parameter]
            for key, value in moments.items():
                slot, _, owner = key.partition("/")
                if owner == name:
                    state[slot] = value.to(parameter.device if value.dim() else "cpu")


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the optimizer's tensors by what they are and whose: `exp_avg/lm_head.weight`."""
    names: dict[Tensor, str] = {one: name for name, one in model.named_parameters()}
    return {
        f"{slot}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for slot, value in state.items()
        if isinstance(value, Tensor)
    }


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
