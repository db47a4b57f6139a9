"""One process or several behind the same few verbs; no other room asks which is running."""

import os

from foveal.config import ShardingSettings
from foveal.errors import ConfigError
from foveal.machine import Precision
from foveal.train.engines.one_process import Engine
from foveal.train.engines.several_processes import DataParallelEngine

LAUNCHERS_SAY = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What processes that find each other have in their environment."""


def check_sharding(engine: str, sharding: ShardingSettings) -> None:
    """Refuse to set how weights are cut for an engine that cuts otherwise, or nothing.

    Raises:
        ConfigError: it is set for another than FSDP2.
    """
    if engine != "fsdp2" and sharding != ShardingSettings():
        raise ConfigError(f"sharding is for engine=fsdp2, not {engine}; use that, or leave it out")


def make_engine(
    name: str, precision: Precision, sharding: ShardingSettings | None = None
) -> Engine:
    """Choose an engine by name; "auto" is DDP where a launcher started several processes.

    Args:
        name: of the recipe.
        precision: of its passes.
        sharding: of fsdp2; none: as settings are by default.

    Raises:
        ConfigError: the launcher and the name do not fit.
    """
    written = os.environ.get("WORLD_SIZE", "1")
    if not written.isdecimal():
        raise ConfigError(f"WORLD_SIZE={written} in the environment: no number; unset it")
    launched = int(written)
    if name == "auto":
        name = "ddp" if launched > 1 else "single"
    sharding = sharding or ShardingSettings()
    check_sharding(name, sharding)
    if name == "single" and launched > 1:
        raise ConfigError(f"engine=single under a launcher of {launched} processes; use engine=ddp")
    if name == "single":
        return Engine(precision)
    if missing := [one for one in LAUNCHERS_SAY if one not in os.environ]:
        stray = f"; WORLD_SIZE={launched} without {missing[0]} is none, unset it" * (launched > 1)
        raise ConfigError(
            f"engine={name} needs a launcher: torchrun --nproc-per-node N -m foveal.cli ...{stray}"
        )
    if name == "ddp":
        return DataParallelEngine(precision)
    if name == "zero2":
        from foveal.train.engines.zero2 import ZeroEngine

        return ZeroEngine(precision)
    from foveal.train.engines.fsdp2 import ShardedEngine

    return ShardedEngine(precision, sharding)
