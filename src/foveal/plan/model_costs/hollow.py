"""A model that stands without weights -> the same model, whose passes run on shapes alone.

Floating-point tensors have a shape, a format and a storage of some size, and no memory; whole
numbers (ids, grids, places) are real, so that code may look at them. Every operation is torch's own
and sees a CPU's tensors, so autocast and the choice of kernels are a real pass's too.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from foveal.models.shared_rows import PREFIX

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward

CPU = torch.device("cpu")
ON_SHAPES = {
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default),
    *(aten.add.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.pow.Tensor_Scalar),
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.rsqrt.default),
    *(aten.silu.default, aten.silu_backward.default, aten.gelu.default, aten.gelu_backward.default),
    *(aten.mean.dim, aten.sum.default, aten.sum.dim_IntList, aten.cat.default, aten.clone.default),
    *(aten.t.default, aten.transpose.int, aten.permute.default, aten.expand.default),
    *(aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.alias.default),
    *(aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.detach.default, aten.native_layer_norm.default, aten.native_layer_norm_backward.default),
}
"""Operations that need no more than torch's kernels for shapes: most of a pass, and quicker so."""

EXPERTS = aten._grouped_mm.default
"""Products of each expert's tokens and matrix; torch says its shapes of bf16 alone."""

COMPARISONS = {aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge}
FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Spent:
    """What one owner of work has spent in a pass."""

    saved_bytes: int = 0
    """Still held when the forward pass has ended."""

    operations: float = 0.0
    """Attention aside."""

    attention: float = 0.0
    """Operations of fused attention; two products going back for each one forward."""

    pairs: float = 0.0
    """That it was given to look at in the forward pass."""

    forward_work_bytes: int = 0
    """At most held beside what stood before it and what it keeps."""

    backward_work_bytes: int = 0
    """At most held beside what stood before its backward pass, weights' gradients aside."""

    @property
    def attention_of_pair(self) -> float:
        """Operations for each pair that it was given to look at."""
        return self.attention / self.pairs if self.pairs else 0.0


@dataclass
class Stored:
    """A storage that is still there."""

    end: Any
    """Hears of it."""

    owner: str
    """Who made it."""

    size: int
    """Bytes; 0 of what no pass holds: inputs, weights and copies of these."""

    with_copies: bool
    """Whether copies of it in another format are counted elsewhere too: of a weight."""


class Hollow(FakeTensorMode):
    """Runs what computes on shapes, and follows who makes what and how long it is held."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.spent: dict[str, Spent] = defaultdict(Spent)
        self.owner = ""
        self.held_bytes = self.peak_bytes = 0
        self.gradients: set[tuple[int, ...]] = set()
        """Shapes of weights' gradients: held, but counted elsewhere."""

        self._storages: dict[int, Stored] = {}
        self._goes_back = False
        self._inside = 0
        self._work_began = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation: on whole numbers for real, else on shapes."""
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        if func is aten.index.Tensor:
            args = args[0], [place for one in args[1] for place in _whole(one)]
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        is_real = not any(isinstance(one, FakeTensor) for one in tensors)
        if is_real and (tensors or _makes_whole_numbers(func, args, kwargs)):
            with no_dispatch():
                return func(*args, **kwargs)
        if func in ON_SHAPES and all(isinstance(one, FakeTensor) for one in tensors):
            made = self._run_on_shapes(func, args, kwargs)
        elif func is EXPERTS:
            made = args[0].new_empty(_experts_shape(*args, **kwargs))
        else:
            self._inside += 1  # of an operation that is put together from others
            try:
                made = super().__torch_dispatch__(func, types, args, kwargs)
            finally:
                self._inside -= 1
        if self._inside:
            return made
        if getattr(func, "_overloadpacket", None) in COMPARISONS:
            # What code asks of numbers it goes on from, as whether a crop is blank: none is equal
            # to another, and all else is so.
            with no_dispatch():
                return torch.full(made.shape, func._overloadpacket is not aten.eq)
        self._count(func, args, kwargs, made)
        for one in tree_leaves(made):
            if isinstance(one, FakeTensor):
                self._follow(func, args, one)
        return made

    def _run_on_shapes(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Skip what torch does for operations that need more than the shapes of tensors."""
        with in_kernel_invocation_manager(self):
            made = func(*args, **kwargs)
        if isinstance(made, Tensor):
            return self._named(made)
        return type(made)(map(self._named, made)) if isinstance(made, list | tuple) else made

    def _named(self, made: Any) -> Any:
        if not isinstance(made, Tensor) or isinstance(made, FakeTensor):
            return made
        return FakeTensor(self, made, CPU)

    def _count(self, func: Any, args: Any, kwargs: Mapping[str, Any], made: Any) -> None:
        packet = getattr(func, "_overloadpacket", None)
        spent = self.spent[self.owner]
        if packet is ATTENTION:
            query, key, value = (one.shape for one in args[:3])
            spent.attention += sdpa_flop_count(query, key, value)
            spent.pairs += 0 if self._goes_back else query[0] * query[-2] * key[-2]
        elif packet is ATTENTION_BACKWARD:
            # A kernel forms the scores once more: a product that is of no use to the result.
            spent.attention += 2 * sdpa_flop_count(*(one.shape for one in args[1:4]))
        elif func is EXPERTS:  # each token meets one expert, whichever way the sum runs
            spent.operations += 2 * args[0].shape[-2] * args[0].shape[-1] * args[1].shape[-1]
        elif packet in flop_registry:
            spent.operations += flop_registry[packet](*args, **kwargs, out_val=made)

    def _follow(self, func: Any, args: Any, made: Tensor) -> None:
        """Remember who made a storage, and hear of its end."""
        storage = made.untyped_storage()
        if storage._cdata in self._storages:
            return
        is_copy = func is aten._to_copy.default
        source = self._storages.get(args[0].untyped_storage()._cdata) if is_copy else None
        if source and source.with_copies:
            self._store(storage, "", 0, with_copies=True)
            return
        is_gradient = self._goes_back and tuple(made.shape) in self.gradients
        self._store(storage, self.owner, 0 if is_gradient else storage.nbytes())

    def _store(self, storage: Any, owner: str, size: int, with_copies: bool = False) -> None:
        key = storage._cdata
        # Its end is heard of: what takes its place in memory counts again.
        end = weakref.ref(storage, lambda _: self._forget(key))
        self._storages[key] = Stored(end, owner, size, with_copies)
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def _forget(self, key: int) -> None:
        self.held_bytes -= self._storages.pop(key).size

    def hollowed(self, tensor: Tensor) -> Tensor:
        """Take a tensor's shape for it, if it holds what is computed with; it is no pass's."""
        if not isinstance(tensor, FakeTensor) and tensor.dtype in (*FORMATS, torch.uint8):
            tensor = self.from_tensor(tensor)
            self.leave_out(tensor)
        return tensor

    def leave_out(self, tensor: Tensor, with_copies: bool = False) -> None:
        """Count a tensor, or also copies of it in another format, to nobody: it is no pass's."""
        storage = tensor.untyped_storage()
        if known := self._storages.get(storage._cdata):
            self.held_bytes -= known.size
            with_copies = with_copies or known.with_copies
        self._store(storage, "", 0, with_copies)

    def begin(self, owner: str) -> None:
        """Begin a pass, whose first work is somebody's."""
        self.spent.clear()
        self.owner, self._goes_back = owner, False
        # What nothing went back through hangs in a circle until Python looks for such.
        for one in self._storages.values():
            one.owner, one.size = "", 0
        self.held_bytes = 0

    def turn(self) -> None:
        """Write down, owner by owner, what the forward pass has kept; the pass goes back now."""
        for one in self._storages.values():
            self.spent[one.owner].saved_bytes += one.size
        self._goes_back = True

    def begin_work(self) -> None:
        """Watch from here on what comes and goes."""
        self._work_began = self.peak_bytes = self.held_bytes

    def end_work(self) -> None:
        """Write down how much came and went."""
        spent = self.spent[self.owner]
        if self._goes_back:
            work = self.peak_bytes - self._work_began
            spent.backward_work_bytes = max(spent.backward_work_bytes, work)
        else:
            work = self.peak_bytes - self.held_bytes
            spent.forward_work_bytes = max(spent.forward_work_bytes, work)

    @contextmanager
    def owned_by(self, owner: str) -> Iterator[None]:
        """Let what is made and computed be somebody's."""
        before, self.owner = self.owner, owner
        try:
            yield
        finally:
            self.owner = before


def _experts_shape(left: Tensor, right: Tensor, offs: Tensor, *_: Any) -> tuple[int, ...]:
    """Tell the shape of tokens by experts' matrices, or of two sets of tokens: the gradient."""
    shape = left.shape[0], right.shape[-1]
    return shape if right.dim() == 3 else (offs.shape[0], *shape)


def _makes_whole_numbers(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether an operation that makes a tensor from nothing makes one to count with."""
    if kwargs.get("dtype") is not None:
        return not kwargs["dtype"].is_floating_point
    packet = getattr(func, "_overloadpacket", None)
    return packet in (aten.arange, aten.full) and not any(isinstance(one, float) for one in args)


def _whole(place: Any) -> list[Any]:
    """Turn a mask into the places that it names: the length of what it picks is known then."""
    if place is None or isinstance(place, FakeTensor) or place.dtype != torch.bool:
        return [place]
    with no_dispatch():
        return list(place.nonzero(as_tuple=True))


def attend_causally(module: nn.Module, *states: Tensor, **arguments: Any) -> tuple[Tensor, Any]:
    """Attend over a whole row by one fused kernel: it keeps what flex and flash attention keep."""
    named = {name: arguments.get(name) for name in ("dropout", "scaling")}
    made: Tensor = sdpa_attention_forward(module, *states[:3], None, is_causal=True, **named)[0]
    return made, None


FUSED = PREFIX + "fused"
AttentionInterface.register(FUSED, attend_causally)
AttentionMaskInterface.register(FUSED, sdpa_mask)


def make_hollow(model: Any, mode: Hollow) -> None:
    """Give each parameter and buffer of a model on no device a shape in `mode`, in place."""
    with mode, no_init_weights(), torch.device("cpu"):
        buffers = dict(type(model)(model.config).named_buffers())
    given: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, one in module._parameters.items():
            if one is None:
                continue
            if id(one) not in given:
                with mode:
                    empty = torch.empty(one.shape, dtype=one.dtype, device="cpu")
                    given[id(one)] = nn.Parameter(empty, requires_grad=one.requires_grad)
                mode.leave_out(given[id(one)], with_copies=True)
            module._parameters[name] = given[id(one)]
        for name, one in module._buffers.items():
            if one is not None:
                made = buffers[f"{path}.{name}" if path else name]
                module._buffers[name] = mode.hollowed(made)
                mode.leave_out(module._buffers[name])  # also one that is hollow already
