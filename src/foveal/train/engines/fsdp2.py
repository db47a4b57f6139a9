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
    Gathered in the run's own precision, matrices come to the bits that autocast would make of
    them; a block's norms are rounded once more than elsewhere. What stands in no block is gathered
    in float32 all the same: of a rounded embedding, all that layers add up would be 16 bits wide.
    Gradients are cut after each pass, not only after a step's last: no process ever holds all of
    them.

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
        travel = MixedPrecisionPolicy()
        if self.sharding.gather == "precision" and self.precision != "float32":
            travel = MixedPrecisionPolicy(
                DTYPES[self.precision], torch.float32, cast_forward_inputs=False
            )
        # A block moves to the device when it is cut: no device ever holds all of the model.
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=travel)
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
    def whole(self) -> Iterator[None]:
        """Have every weight whole in each process, so that each runs the model on its own.

        All processes enter and leave together.
        """
        if self.module is None or self._is_whole:
            yield
            return
        with torch.no_grad():
            self.module()  # FSDP2 takes what runs first for the root
        vectors = self._whole_vectors()
        shards = [one for one in self.module.modules() if isinstance(one, FSDPModule)]
        self.module.set_reshard_after_forward(False)
        for shard in shards:
            shard.unshard()
        for module, name, exact in vectors:
            module.register_parameter(name, exact)
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False
            for shard in shards:
                shard.reshard()
            self.module.set_reshard_after_forward(True)
            self.module.set_reshard_after_forward(False, recurse=False)

    def _whole_vectors(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Bring weights together that travel rounded and are not computed with so elsewhere.

        Resharding puts the shares back in their places.
        """
        if self.sharding.gather == "float32":
            return []
        return [
            (module, name, nn.Parameter(self.whole_tensor(one.detach()), one.requires_grad))
            for module in self.module.modules()
            for name, one in module.named_parameters(recurse=False)
            if one.dim() < 2
        ]

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
