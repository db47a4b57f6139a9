"""A run -> its folder, which no other process works in meanwhile."""

import os
from functools import partial
from pathlib import Path

from foveal.errors import RunError
from foveal.storage import AtWorkError, take_lock
from foveal.train.engines.one_process import Engine

LOCK = ".lock"
"""In a run's folder: held by the process that is at work in it."""


def drop_parts(run: Path) -> None:
    """Take away what a run that was killed while it wrote a file has left beside it."""
    for folder in (run, *run.glob("evaluation/*")):
        for part in folder.glob(".*.part"):
            if part.is_file():
                part.unlink(missing_ok=True)


def claim_folder(run: Path, fresh: bool, engine: Engine) -> int | None:
    """See, before anything is paid for, that a run has its folder, and has it alone.

    Args:
        run: its folder.
        fresh: whether a former run is kept aside, under another name.
        engine: of the run; its main process claims, and all know alike what comes of it.

    Returns:
        The file that holds the folder, in the main process, until it is released; the
        system lets go of it where a process dies.

    Raises:
        RunError: it cannot be made, or another process is at work in it.
    """
    held = engine.by_main(partial(_take, run, fresh))
    run.mkdir(parents=True, exist_ok=True)  # on a node of its own
    return held


def _take(run: Path, fresh: bool) -> int:
    try:
        if fresh and run.exists():
            os.close(take_lock(run / LOCK, run))
            _set_aside(run)
        return take_lock(run / LOCK, run)
    except AtWorkError as error:
        raise RunError(f"run={run}: {error.strerror}; let it end, or give another") from error
    except OSError as error:
        raise RunError(f"run={run}: {error.strerror}; give a folder to write to") from error


def release_folder(claim: int | None) -> None:
    """Let others have the folder of a run that has ended."""
    if claim is not None:
        os.close(claim)


def _set_aside(run: Path) -> None:
    number = 1
    while (kept := run.with_name(f"{run.name}.before-{number}")).exists():
        number += 1
    run.rename(kept)
