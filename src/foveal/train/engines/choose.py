"""An engine's name and what a launcher started -> the engine."""

import os

from foveal.errors import ConfigError
from foveal.machine import Precision
from foveal.train.engines.one_process import Engine
from foveal.train.engines.several_processes import DataParallelEngine


def make_engine(name: str, precision: Precision) -> Engine:
    """Choose an engine by name; "auto" is DDP where a launcher started several processes.

    Raises:
        ConfigError: the launcher and the name do not fit.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if name == "auto":
        name = "ddp" if launched > 1 else "single"
    if name == "single" and launched > 1:
        raise ConfigError(f"engine=single under a launcher of {launched} processes; use engine=ddp")
    if name == "single":
        return Engine(precision)
    if "RANK" not in os.environ:
        raise ConfigError(
            f"engine={name} needs a launcher: torchrun --nproc-per-node N -m foveal.cli ..."
        )
    if name == "ddp":
        return DataParallelEngine(precision)
    if name == "zero2":
        from foveal.train.engines.zero2 import ZeroEngine

        return ZeroEngine(precision)
    from foveal.train.engines.fsdp2 import ShardedEngine

    return ShardedEngine(precision)
