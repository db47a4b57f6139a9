"""Starts processes that find everything loaded: forked from one that has run nothing itself."""

import atexit
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from spared import spare

# A process in which PyTorch has differentiated cannot be forked any more; this one never has.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("foveal.run", "foveal.models.phi3_vision.seam", "foveal.report.report", "peft"),
        *("bitsandbytes", "torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo"),
    ]
)


@dataclass(frozen=True)
class Forked:
    """A process at work, and the file that holds what it said."""

    process: BaseProcess
    said: Path

    def ended(self) -> tuple[int, str]:
        """Wait for its end; returns its status and its words."""
        self.process.join(timeout=300)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode, self.said.read_text()


def fork(work: Callable[..., object], *given: object, said: Path, **environment: str) -> Forked:
    """Let a process of its own do some work."""
    process = SERVER.Process(target=_begin, args=(work, given, said, environment))
    process.start()
    return Forked(process, said)


def fork_group(
    count: int, port: int, folder: Path, work: Callable[..., object], *given: object
) -> list[Forked]:
    """Start processes that find each other, as a launcher would; each says its words in a file."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        fork(
            work, *given, said=folder / f"rank-{rank}.txt", **group, RANK=str(rank), LOCAL_RANK="0"
        )
        for rank in range(count)
    ]


def _begin(
    work: Callable[..., object], given: tuple[object, ...], said: Path, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    os.fsync = lambda descriptor: None  # as conftest.py
    spare(pytest.MonkeyPatch())
    with said.open("wb") as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
    try:
        work(*given)
    finally:
        atexit._run_exitfuncs()  # multiprocessing's children pass them over
