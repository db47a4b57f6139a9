"""A GPU that is not there: tensors that say they are on one, are held here, and refuse to mix.

Forward passes alone: autograd asks a build for processors about its GPUs. What is not caught
either is the speed, the rounding and the order of a real card's kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
CROSSES = {aten._to_copy.default, aten.copy_.default}
"""What may have a tensor here and one there."""

INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
"""What may have an index here."""

READS = {aten._local_scalar_dense.default, aten.equal.default}
"""What answers with a plain number."""


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=GPU
        )
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        given = (args, kwargs or {})
        try:
            if function is not torch.Tensor.tolist:  # which wants no class but torch's own
                with torch._C.DisableTorchFunctionSubclass():
                    return function(*given[0], **given[1])
        except RuntimeError as error:
            if "not linked with support" not in str(error):
                raise
        # Some of Python's ways into a tensor ask for its device's guard before they dispatch.
        _refuse_mixing(function, args[::2] if function in INDEXING else given)
        held_args, held_kwargs = tree_map(_held, given)
        return tree_map(_on_gpu, function(*held_args, **held_kwargs))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    """Makes new tensors for the GPU, too, which no tensor of it is asked for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


@contextmanager
def pretend_gpu(monkeypatch) -> Iterator[torch.device]:
    """Have a GPU for a while; modules that move to it keep the tensors that they are given."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    former = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Dispatch(), torch.no_grad():
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(former)


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    there = any(isinstance(one, OnGpu) for one in tree_leaves((args, kwargs)))
    if "device" in kwargs and kwargs["device"] is not None:
        there = torch.device(kwargs["device"]).type == GPU.type
        kwargs = kwargs | {"device": torch.device("cpu")}
    if function not in CROSSES:
        _refuse_mixing(function, (args, kwargs))
    made = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if function._schema.name.endswith("_") and function._schema.returns:
        return args[0]  # changed in its place
    return made if function in READS or not there else tree_map(_on_gpu, made)


def _refuse_mixing(function: Any, given: Any) -> None:
    tensors = [one for one in tree_leaves(given) if isinstance(one, torch.Tensor)]
    # A single number may be anywhere.
    places = {isinstance(one, OnGpu) for one in tensors if one.dim()}
    if len(places) > 1:
        raise RuntimeError(f"{function}: one tensor is on the GPU and another is not")


def _held(one: Any) -> Any:
    return one.held if isinstance(one, OnGpu) else one


def _on_gpu(one: Any) -> Any:
    plain = isinstance(one, torch.Tensor) and not isinstance(one, OnGpu)
    return OnGpu(one) if plain else one
