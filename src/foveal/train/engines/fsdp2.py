"""A model in, its weights, gradients and moments cut over all processes: PyTorch's FSDP2."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from foveal.train.engines.one_process import norm_of
from foveal.train.engines.several_processes import GroupEngine


class Root(nn.Module):
    """Stands above all that is cut; run without inputs, it only brings its own weights together."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        """Run the module, if there is anything to run it on."""
        return self.module(*inputs) if inputs else None


class ShardedEngine(GroupEngine):
    """PyTorch's fully_shard: each process holds its share of every weight.

    A block's weights come together while it runs, in float32, and autocast computes with them as
    on every other engine: the numbers are the same, so a run may go on from one to the other.
    (Gathered in 16 bits they would need half the traffic, but then norms and what layers add up
    would be 16 bits wide too.) Gradients are cut after each pass, not only after a step's last:
    no process ever holds all of them.

    Weights in 4 bits are cut as they are packed. Their scales, a few percent of their size, stay
    whole: bitsandbytes' layers hold them outside of the weights.
    """

    module: Any
    """The root."""

    cuts_state = True
    gathers_blocks = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._is_whole = False

    def _wrap(self, module: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        # A block moves to the device when it is cut: no device ever holds all of the model.
        for block in blocks:
            fully_shard(block, mesh=mesh)
        root = Root(module)
        fully_shard(root, mesh=mesh)
        return root

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients together, over all processes, (), float32."""
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        shares = [one.to_local() for one in gradients if isinstance(one, DTensor)]
        (square,) = self.add_up([float(norm_of(shares)) ** 2])
        return torch.tensor(math.sqrt(square), device=self.device)

    def has_gradient(self, parameter: nn.Parameter) -> bool:
        """Tell whether a weight's gradient is anywhere other than zero, in any process."""
        if parameter.grad is None:
            return False
        return bool(self.whole_tensor(parameter.grad.any()))

    def whole_tensor(self, tensor: Tensor) -> Tensor:
        """Bring a weight or a part of an optimizer's state together, in all processes alike."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def share_of(self, value: Tensor, parameter: Tensor) -> Tensor:
        """Keep our share of a whole tensor; every process has read it, so none need be sent."""
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return super().share_of(value, parameter)
        mesh, places = parameter.device_mesh, parameter.placements
        cut = distribute_tensor(value, mesh, places, src_data_rank=None)
        return cut.clone()  # the share alone, not a view that keeps the whole one

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Surround forward passes that no backward pass follows, which would cut the root again."""
        try:
            yield
        finally:
            for shard in self.module.modules():
                if isinstance(shard, FSDPModule):
                    shard.reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have every weight whole in each process, so that each runs the model on its own.

        All processes enter and leave together.
        """
        if self.module is None or self._is_whole:
            yield
            return
        with torch.no_grad():
            self.module()  # FSDP2 takes what runs first for the root
        shards = [one for one in self.module.modules() if isinstance(one, FSDPModule)]
        self.module.set_reshard_after_forward(False)
        for shard in shards:
            shard.unshard()
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False
            for shard in shards:
                shard.reshard()
            self.module.set_reshard_after_forward(True)
            self.module.set_reshard_after_forward(False, recurse=False)

    def release(self) -> None:
        """Give the main process its module back, plain and whole; nothing is run after this.

        A weight at a time, and to the CPU: the device need not hold all of them.
        """
        plain: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.module.modules():
            for name, one in list(module.named_parameters(recurse=False)):
                if one not in plain:
                    tensor = self.whole_tensor(one)
                    plain[one] = nn.Parameter(
                        tensor.detach().cpu() if self.is_main else torch.empty(0), one.requires_grad
                    )
                setattr(module, name, plain[one])
