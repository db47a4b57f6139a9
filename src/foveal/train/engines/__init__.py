"""One process or several behind the same few verbs; no other room asks which is running."""

import os
from typing import Literal

from foveal.config import ShardingSettings
from foveal.errors import ConfigError
from foveal.machine import Precision
from foveal.train.engines.one_process import Engine
from foveal.train.engines.several_processes import DataParallelEngine

EngineName = Literal["single", "ddp", "fsdp2", "zero2"]

LAUNCHERS_SAY = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What processes that find each other have in their environment."""


def check_sharding(engine: str, sharding: ShardingSettings) -> None:
    """Refuse to set how weights are cut for an engine that cuts otherwise, or nothing.

    Raises:
        ConfigError: it is set for another than FSDP2.
    """
    if engine != "fsdp2" and sharding != ShardingSettings():
        raise ConfigError(f"sharding is for engine=fsdp2, not {engine}; use that, or leave it out")


def engine_name(name: Literal[EngineName, "auto"], world_size: int) -> EngineName:
    """Choose an engine: "auto" is DDP where there are several processes.

    Args:
        name: of the recipe.
        world_size: processes of the run.

    Raises:
        ConfigError: one process was asked for, and there are several.
    """
    if name == "single" and world_size > 1:
        raise ConfigError(
            f"engine=single under a launcher of {world_size} processes; use engine=ddp"
        )
    if name == "auto":
        return "ddp" if world_size > 1 else "single"
    return name


def make_engine(
    name: Literal[EngineName, "auto"],
    precision: Precision,
    sharding: ShardingSettings | None = None,
) -> Engine:
    """Make the engine that a recipe names, as a launcher's environment says.

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
    name = engine_name(name, launched)
    sharding = sharding or ShardingSettings()
    check_sharding(name, sharding)
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
