"""Libraries kept quiet and light: their remarks go to a run's file, and none is imported unused."""

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

OURS = "foveal"
LIBRARIES_LOG = "libraries.log"
"""In a run's folder: what libraries had to remark."""

SPEAKS_BY_ITSELF = "DeepSpeed"
"""Name of the logger that writes to standard output, past all others."""

BITS, BITS_QUESTIONS = "bitsandbytes", ("is_bnb_available", "is_bnb_4bit_available")
MOST_BUFFERED = 10_000
"""LibraryRemarks that wait for a run's folder; there are a few."""


class LibraryRemarks(logging.Handler):
    """Takes what libraries say: to wait for a run's folder, then into a file there.

    Our own loggers are heard as they are without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        self._waiting: list[str] = []
        self._path: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a remark."""
        if record.name.partition(".")[0] == OURS:
            if logging.lastResort and record.levelno >= logging.lastResort.level:
                logging.lastResort.emit(record)
            return
        self._waiting = [*self._waiting, self.format(record)][-MOST_BUFFERED:]
        self._write()

    def keep_in(self, path: Path) -> None:
        """Write what waits to a file, and all that follows."""
        self._path = path
        self._write()

    def _write(self) -> None:
        if self._path is None or not self._waiting:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._waiting)
            self._waiting = []
        except OSError:
            self._path = None  # a full disk stops the run where it writes its own

    def divert(self, record: logging.LogRecord) -> bool:
        """Take a remark in place of a logger's own handlers."""
        self.handle(record)
        return False


REMARKS = LibraryRemarks()


def remarks_are_caught() -> bool:
    """Tell whether this program keeps libraries from its terminal; one that imports us may not."""
    return REMARKS in logging.getLogger().handlers


def catch_remarks() -> None:
    """Keep what libraries log and warn of from the terminal; a second call does nothing."""
    if not remarks_are_caught():
        logging.getLogger().addHandler(REMARKS)
        logging.getLogger(SPEAKS_BY_ITSELF).addFilter(REMARKS.divert)
        logging.captureWarnings(True)


@contextmanager
def taken_as_absent(module: str, *questions: str) -> Iterator[None]:
    """Let a library's module find others missing, which it would import only to look at them.

    Args:
        module: its full name.
        questions: names in it of functions that tell whether something is installed.
    """
    asked = import_module(module)
    kept = {name: getattr(asked, name) for name in questions}
    for name in questions:
        setattr(asked, name, lambda: False)
    try:
        yield
    finally:
        for name, one in kept.items():
            setattr(asked, name, one)


def import_peft() -> Any:
    """Import peft without bitsandbytes, which it would bring in only to look at it."""
    spared = BITS not in sys.modules
    if spared:
        sys.modules[BITS] = None  # type: ignore[assignment]  # Python's word for "not to be had"
    try:
        peft = import_module("peft")
    finally:
        if spared:
            del sys.modules[BITS]
    asked = import_module("peft.import_utils")
    for question in BITS_QUESTIONS:
        getattr(asked, question).cache_clear()
    return peft


def without_bitsandbytes() -> AbstractContextManager[None]:
    """Let peft look at layers that are all whole without importing bitsandbytes for it."""
    return taken_as_absent("peft.tuners.lora.model", *BITS_QUESTIONS)


def without_deepspeed() -> AbstractContextManager[None]:
    """Let a model be saved that no engine wraps without importing DeepSpeed for it."""
    return taken_as_absent("accelerate.utils.other", "is_deepspeed_available")
