"""An error in the midst of a run -> what a person can mend, if it is of that kind."""

import re
from pathlib import Path

from foveal.errors import RunError
from foveal.storage import FAILED_WRITES

WITHOUT_ORDER = re.compile(r"(\S+) does not have a deterministic implementation")
"""PyTorch's words for an operation that adds in any order alone."""

WITHOUT_WORKER = re.compile(r"DataLoader worker .* (killed by signal|exited unexpectedly)")
"""PyTorch's words for a process that opens images and is no more."""

BROKEN_OFF = (ConnectionError, EOFError)
"""What is seen of one that is ended while it hands over what it opened."""


def mendable_failure(error: Exception, run: Path) -> RunError | None:
    """Say in one line what to do about an error; nothing where it is none that is known.

    Args:
        error: that ended the run.
        run: its folder.
    """
    if isinstance(error, OSError) and error.errno in FAILED_WRITES:
        return RunError(
            f"cannot write to {error.filename or run}: {error.strerror}; "
            "free space and run the same command again"
        )
    if isinstance(error, RuntimeError) and (found := WITHOUT_ORDER.search(str(error))):
        return RunError(
            f"train.deterministic=true: {found[1]} has no kernel that adds in one order here; try "
            "attention=blocks, or go on with train.deterministic=false"
        )
    if isinstance(error, BROKEN_OFF) or (
        isinstance(error, RuntimeError) and WITHOUT_WORKER.search(str(error))
    ):
        return RunError(
            "a process that opens images was ended, as systems do that run out of memory; free "
            "some, or give fewer, data.workers; the same command goes on from the last checkpoint"
        )
    return None
