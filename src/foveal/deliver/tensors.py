"""Folders of safetensors <-> tensors by name, one at a time in, one shard at a time out."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveal.errors import ModelError
from foveal.storage import write_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when it is asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Raises ModelError where its file is broken."""


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the weights of a model folder, by their names in its files.

    Args:
        folder: with model.safetensors, or with shards and their index.

    Raises:
        ModelError: there are no weights in safetensors, or a file of them is broken or missing.
    """
    if (folder / INDEX).is_file():
        files = sorted(set(_weight_map(folder / INDEX).values()))
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        pickled = sorted(path.name for kind in PICKLED for path in folder.glob(kind))
        why = f"{pickled[0]} may run code and is never opened" if pickled else "there is none"
        raise ModelError(
            f"{folder}: no weights in safetensors ({why}); give a folder with {SINGLE}"
        )
    found: dict[str, StoredTensor] = {}
    for file in files:
        found |= tensors_of(folder / file)
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index}: no index of weights ({error}); fetch it again") from error


def tensors_of(file: Path) -> dict[str, StoredTensor]:
    """List the tensors of one file by their names in it.

    Raises:
        ModelError: it is missing or broken.
    """
    with _opened(file) as tensors:
        return {
            name: StoredTensor(
                tuple(tensors.get_slice(name).get_shape()), partial(_read, file, name)
            )
            for name in tensors.keys()  # noqa: SIM118 - a file, not a mapping
        }


def _read(file: Path, name: str) -> Tensor:
    with _opened(file) as tensors:
        tensor: Tensor = tensors.get_tensor(name)
        return tensor


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: {error}; fetch or write it again") from error


def write_shards(
    folder: Path,
    planned: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: int,
) -> list[Path]:
    """Write tensors in shards with their index.

    Args:
        folder: to write into.
        planned: every tensor, in order and without its content (on the meta device).
        tensors: the same with their names; each is made when its turn comes, and let go with its
            shard.
        max_shard_bytes: most bytes of a file, and of what memory holds at a time.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(planned), max_shard_size=max_shard_bytes)
    shards: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors:
        file = split.tensor_to_filename[name]
        shards[file][name] = tensor.contiguous()
        if len(shards[file]) == len(split.filename_to_tensors[file]):
            save_file(shards.pop(file), folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX, index, indent=2)
    return [folder / file for file in split.filename_to_tensors]


def in_format(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Bring a weight into a number format; a buffer that counts stays as it is.

    Raises:
        ModelError: a number of it is not finite then.
    """
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not is_finite(cast):
        where = "--dtype bf16 holds it" if is_finite(tensor) else "in the run too"
        raise ModelError(f"weight {name} is not finite in {dtype}; {where}")
    return cast


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all numbers of a tensor are finite; one without content has none that is not."""
    return tensor.is_meta or bool(torch.isfinite(tensor).all())
