"""A model in, its weights, gradients and moments cut over all processes: PyTorch's FSDP2."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from foveal.config import ShardingSettings
from foveal.errors import ConfigError
from foveal.machine import DTYPES, Precision
from foveal.train.engines.one_process import norm_of
from foveal.train.engines.several_processes import GroupEngine

ITS_OWN = MixedPrecisionPolicy()
"""Weights travel in the format that they have."""


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
    Gathered in the run's own precision, linear layers come to the bits that autocast would make of
    them. All else is gathered in float32 all the same: of a rounded embedding or norm, all that
    layers add up would be 16 bits wide. Gradients are cut after each pass, not only after a step's
    last: no process ever holds all of them.

    Weights in 4 bits are cut as they are packed. Their scales, a few percent of their size, stay
    whole: bitsandbytes' layers hold them outside of the weights.
    """

    module: Any
    """The root."""

    cuts_state = True
    gathers_blocks = True

    def __init__(
        self, precision: Precision = "float32", sharding: ShardingSettings | None = None
    ) -> None:
        self.sharding = sharding or ShardingSettings()
        super().__init__(precision)
        self._is_whole = False
        self._exact: list[Any] = []
        self.copies = 1 if self.sharding.group == "all" else self._count_nodes()
        """Of the whole model, over all processes."""

    def _count_nodes(self) -> int:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        if any(one != here for one in self.gather([here])):
            raise ConfigError(
                "sharding.group=node needs as many processes on each node; launch them so, or "
                "use sharding.group=all"
            )
        return self.world_size // here

    def _wrap(self, module: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        kind, each = self.device.type, self.world_size // self.copies
        if self.copies == 1:
            mesh = init_device_mesh(kind, (each,))
        else:  # ranks of a node come one after the other
            names = ("copies", "shares")
            mesh = init_device_mesh(kind, (self.copies, each), mesh_dim_names=names)
        rounds = self.sharding.gather == "precision" and self.precision != "float32"
        rounded = MixedPrecisionPolicy(
            DTYPES[self.precision], torch.float32, cast_forward_inputs=False
        )
        # A block moves to the device when it is cut: no device ever holds all of the model.
        for block in blocks:
            can_round = rounds and not list(block.parameters(recurse=False))
            for part in parts_to_keep_exact(block) if can_round else ():
                # Small, so it stays whole till the backward pass, which may run it again.
                fully_shard(part, mesh=mesh, reshard_after_forward=False)
                self._exact.append(part)
            fully_shard(block, mesh=mesh, mp_policy=rounded if can_round else ITS_OWN)
        root = Root(module)
        fully_shard(root, mesh=mesh)
        return root

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        """Add gradients up between the copies in the last pass of a step alone."""
        if self.copies > 1:
            self.module.set_requires_all_reduce(last)
        yield

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients together, over all processes, (), float32."""
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        shares = [one.to_local() for one in gradients if isinstance(one, DTensor)]
        (square,) = self.add_up([float(norm_of(shares)) ** 2])
        return torch.tensor(math.sqrt(square / self.copies), device=self.device)

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
    def gathered_weights(self) -> Iterator[None]:
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
            for one in (self.module, *self._exact):
                one.set_reshard_after_forward(False, recurse=False)

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


def parts_to_keep_exact(block: nn.Module) -> list[nn.Module]:
    """List a block's outermost parts that hold weights of their own and are no linear layers.

    Autocast rounds what linear layers compute with, and leaves the rest alone.
    """
    found: list[nn.Module] = []
    for part in block.children():
        if isinstance(part, nn.Linear):
            continue
        if list(part.parameters(recurse=False)):
            found.append(part)
        else:
            found += parts_to_keep_exact(part)
    return found
