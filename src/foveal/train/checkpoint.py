"""A run's state -> a folder written whole or not at all, and back: exactly where it stopped."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from foveal.errors import RunError

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"

COUNT = torch.int64
"""A number of steps that an optimizer counts in Python; no tensor of its own is of this kind."""


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
    write: bool = True,
) -> Path:
    """Write `folder/step-N` beside its place, flush it, rename it; then prune the oldest.

    Tensors are written whole, under the model's own names, however the run held them: any engine
    and any number of processes can read them. Every random choice follows from (seed, step), so
    no random state is saved.

    Args:
        folder: of all checkpoints.
        progress: of the run.
        model: bare.
        optimizer: of its learning weights.
        keep: newest checkpoints that stay.
        write: whether this process is the one that writes; the others help it gather.

    Raises:
        RunError: it cannot be written; earlier checkpoints are untouched.
    """
    place = folder / f"step-{progress.step}"
    beside = folder / f".step-{progress.step}.part"
    learning = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if not write:
        _gather(learning, keep=False)
        _gather(optimizer_tensors(model, optimizer), keep=False)
        return place
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(_gather(learning), beside / WEIGHTS)
        save_file(_gather(optimizer_tensors(model, optimizer)), beside / OPTIMIZER)
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
    """Refuse to go on with another recipe or other data.

    Another number of processes is no other run: a step is the same set of examples on any.

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
    if changed:
        raise RunError(
            f"{checkpoint} belongs to another run: {'; '.join(changed)}; "
            "undo that, choose another run=..., or start anew with --fresh"
        )


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state back, bit for bit; of sharded ones this process's share.

    Raises:
        RunError: a file cannot be read, or does not fit.
    """
    learning = {name: one for name, one in model.named_parameters() if one.requires_grad}
    numbers = {
        parameter: number
        for number, parameter in enumerate(
            one for group in optimizer.param_groups for one in group["params"]
        )
    }
    states: dict[int, dict[str, Any]] = {}
    try:
        with safe_open(checkpoint / WEIGHTS, "pt") as weights, torch.no_grad():
            if set(weights.keys()) != learning.keys():
                odd = sorted(set(weights.keys()) ^ learning.keys())[0]
                raise RunError(
                    f"{checkpoint}: its weights are not those that learn now, such as {odd}"
                )
            for name, parameter in learning.items():
                parameter.copy_(_held_like(weights.get_tensor(name), parameter))
        with safe_open(checkpoint / OPTIMIZER, "pt") as moments:
            for key in moments.keys():  # noqa: SIM118 - a file, not a mapping
                slot, _, owner = key.partition("/")
                value = moments.get_tensor(key)
                held: Any = _held_like(value, learning[owner])
                if value.dtype == COUNT and not value.dim():
                    held = int(value)
                states.setdefault(numbers[learning[owner]], {})[slot] = held
    except (OSError, SafetensorError) as error:
        raise RunError(f"{checkpoint}: {error}; delete it to go on from an earlier one") from error
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the optimizer's tensors by what they are and whose: `exp_avg/lm_head.weight`."""
    names: dict[Tensor, str] = {one: name for name, one in model.named_parameters()}
    return {
        f"{slot}/{names[parameter]}": _as_tensor(slot, value)
        for parameter, state in optimizer.state.items()
        for slot, value in state.items()
        if isinstance(value, Tensor | int)
    }


def _as_tensor(slot: str, value: Tensor | int) -> Tensor:
    if isinstance(value, int):
        return torch.tensor(value, dtype=COUNT)
    # The table of 8-bit levels is one for all weights; a file holds no tensor under two names.
    return value.clone() if slot.startswith("qmap") else value


def _gather(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Bring sharded tensors together on the CPU, one after the other, in every process alike."""
    gathered = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            gathered[name] = whole.detach().cpu().contiguous()
    return gathered


def _held_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Move a whole tensor to where a weight is; of a sharded weight's, keep this process's share.

    Every process has read the whole one, so none need be sent.
    """
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value.to(parameter.device) if value.dim() else value
    cut = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return cut.clone()  # the share alone, not a view that keeps the whole one


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
