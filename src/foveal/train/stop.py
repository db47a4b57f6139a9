"""Signals that ask for an end -> a request that a run answers after its step."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from foveal.data.parallel import ASKS_TO_STOP
from foveal.train.engines.one_process import Engine

STOPS = sorted(ASKS_TO_STOP)  # in the same order in every process

SHOW_CURSOR = b"\x1b[?25h"


class StopRequest:
    """The first signal that asked for an end, if one did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; a launcher may send others behind it."""
        self.signal = self.signal or number


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


def asked_by_any(engine: Engine, request: StopRequest) -> int:
    """Agree over all processes on a signal, 0 for none: it may reach one a step earlier."""
    counts = engine.add_up([float(request.signal == number) for number in STOPS])
    return next((int(number) for number, count in zip(STOPS, counts, strict=True) if count), 0)


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
