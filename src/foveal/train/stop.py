"""What ends a run -> a request that it answers after its step, or a line that says what to mend."""

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from foveal.data.parallel import ASKS_TO_STOP
from foveal.errors import RunError
from foveal.storage import FAILED_WRITES
from foveal.train.engines.one_process import Engine

STOPS = sorted(ASKS_TO_STOP)  # in the same order in every process

SHOW_CURSOR = b"\x1b[?25h"

WITHOUT_ORDER = re.compile(r"(\S+) does not have a deterministic implementation")
"""PyTorch's words for an operation that adds in any order alone."""

WITHOUT_WORKER = re.compile(r"DataLoader worker .* (killed by signal|exited unexpectedly)")
"""PyTorch's words for a process that opens images and is no more."""

BROKEN_OFF = (ConnectionError, EOFError)
"""What is seen of one that is ended while it hands over what it opened."""


class StoppedError(Exception):
    """A run was asked to end before its last step; the same command goes on from there."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"signal {signal} behind step {step}")
        self.signal, self.step = signal, step


class StopRequest:
    """The first signal that asked for an end, if one did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; a launcher may send others behind it."""
        self.signal = self.signal or number

    def of_any(self, engine: Engine) -> int:
        """Agree over all processes on a signal, 0 for none: it may reach one a step earlier."""
        counts = engine.add_up([float(self.signal == number) for number in STOPS])
        return next((int(one) for one, count in zip(STOPS, counts, strict=True) if count), 0)

    def heed(self, engine: Engine, step: int) -> None:
        """End the run where any process was asked to.

        Args:
            engine: of the run.
            step: steps taken.

        Raises:
            StoppedError: one was, in all processes alike.
        """
        if number := self.of_any(engine):
            raise StoppedError(number, step)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn signals into a request; a second SIGINT leaves at once.

    A SIGHUP that somebody had ignored, as nohup does, stays ignored.
    """
    request = StopRequest()
    former = {
        number: signal.signal(number, request)
        for number in STOPS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    # Python runs handlers between two of its own instructions, and a backward pass is one: only
    # what Python itself writes here is seen at once.
    former_descriptor = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_leave_at_the_second, args=(ours,), daemon=True).start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(former_descriptor)
        pythons.close()  # ends the thread
        for number, handler in former.items():
            signal.signal(number, handler)


def _leave_at_the_second(numbers: socket.socket) -> None:
    # torchrun hands on the Ctrl-C that its processes have had from the terminal already.
    interrupts = -1 if "TORCHELASTIC_RUN_ID" in os.environ else 0
    with numbers:
        while read := numbers.recv(64):
            interrupts += read.count(signal.SIGINT)
            if interrupts > 1:
                if os.isatty(2):
                    os.write(2, SHOW_CURSOR)
                os._exit(128 + signal.SIGINT)


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
