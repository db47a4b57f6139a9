"""A function and its items -> its results, from processes started afresh or threads, counted."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from foveal.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

ASKS_TO_STOP = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
"""What asks a program to end: a person, schedulers, a terminal that closes."""

AT_ONCE = 32
"""Threads that wait for a store: it answers late, and many at once."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def parallel(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, chunk: int
) -> Generator[_Result, None, None]:
    """Apply `work` to each item, in order; only a bounded number of items is under way.

    Args:
        work: a function of a module, since processes must find it by name.
        items: read as needed, so it may be endless.
        workers: processes; 0 or 1: none beside this one.
        chunk: items handed out at a time; fewer than this are not worth a process.
    """
    items = iter(items)
    first = list(islice(items, chunk))
    if workers <= 1 or len(first) < chunk:
        yield from map(work, first)
        yield from map(work, items)
        return
    with _pool(workers) as submit:
        under_way = deque([submit(_apply, work, first)])
        while under_way:
            while len(under_way) < 4 * workers and (block := list(islice(items, chunk))):
                under_way.append(submit(_apply, work, block))
            yield from under_way.popleft().result()


def side_by_side(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Apply `work` to each item, in order, in threads that mostly wait for a store."""
    items = iter(items)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        under_way = deque(pool.submit(work, item) for item in islice(items, 4 * AT_ONCE))
        while under_way:
            yield under_way.popleft().result()
            under_way.extend(pool.submit(work, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def counting(console: "Console | None", words: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of so many things are done, as often as it is told; without a console, nowhere.

    Args:
        console: to show it on.
        words: that say what is done with which things.
        total: things.
    """
    if console is None:
        yield lambda done: None
        return
    from rich import progress

    columns = progress.TextColumn("{task.description}"), progress.BarColumn()
    counted = progress.MofNCompleteColumn(), progress.TimeRemainingColumn()
    with progress.Progress(*columns, *counted, console=console, transient=True) as bar:
        task = bar.add_task(words, total=total)
        yield lambda done: bar.update(task, completed=done)


def in_new_process(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Call a function in a process of its own, which has imported and allocated nothing before."""
    with _pool(1) as submit:
        done: _Result = submit(function, *arguments).result()
        return done


@contextmanager
def deaf_to_stops() -> Iterator[None]:
    """Start processes that no request to stop reaches: this one alone hears it, and ends them.

    Ctrl-C reaches all processes of a terminal, and a scheduler's signal all of a job.
    """
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, ASKS_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


@contextmanager
def _pool(workers: int) -> Iterator[Callable[..., "Future[Any]"]]:
    """Give what hands work to processes; an error here, such as Ctrl-C, ends theirs at once."""
    # Started afresh: a process forked beside threads (a progress bar, torch) may hang.
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    others = set(active_children())

    def submit(work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        with deaf_to_stops():  # which may start a process
            return pool.submit(work, *arguments)

    try:
        yield submit
    except BrokenProcessPool as error:
        raise DataError(
            "a process beside this one was ended, as systems do that run out of memory; free some, "
            "or give fewer processes: --workers, data.workers"
        ) from error
    except BaseException:
        for process in set(active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker not work on when the process that started it was killed."""

    def watch() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _apply(work: Callable[[_Item], _Result], items: list[_Item]) -> list[_Result]:
    return [work(item) for item in items]
