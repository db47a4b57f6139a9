"""Files written whole or not at all, whatever stops the writing; an error names the file meant."""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import get_ident
from typing import Any

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says of a disk that is full."""

FAILED_WRITES = FULL | {errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
"""What the system says of a disk that is full or takes no more."""


def _about(place: Path, error: OSError) -> OSError:
    """Say of a place that is known to people why it cannot be written."""
    if error.errno == errno.ENOENT:
        return NotADirectoryError(errno.ENOTDIR, "no folder to write in", str(place))
    return OSError(error.errno, error.strerror or str(error), str(place))


@contextmanager
def _named(place: Path, part: Path) -> Iterator[None]:
    """Let an error name the place that is known to people, not the part beside it."""
    try:
        yield
    except OSError as error:
        named = str(error.filename or part)
        is_gone = error.errno == errno.ENOENT and place.parent.is_relative_to(named)
        if named.startswith(str(part)) or is_gone:
            raise _about(place, error) from error
        raise
    except Exception as error:
        if (number := system_error(error)) in FULL:
            raise OSError(number, os.strerror(number), str(place)) from error
        raise


def system_error(error: Exception) -> int:
    """Find the system's number in the words of an error, as libraries in Rust write it; or 0."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else 0


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the place beside `path` to write to; it takes `path`'s place behind the block.

    Whatever breaks off the block leaves what stood there before.

    Raises:
        OSError: it cannot be written; names `path`, not the place beside it.
    """
    # Two processes, or threads, may write one file, each its own copy of it.
    beside = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.part")
    with _named(path, beside):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def disk_time(folder: Path) -> float:
    """Ask the disk of a folder for the time, seconds since 1970: it need not be this machine's.

    Raises:
        OSError: it takes no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(prefix=".now-", dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def drop_older(places: Iterable[Path], time: float) -> None:
    """Drop files and folders that were made up to a time, as their disk has it."""
    for place in places:
        with suppress(FileNotFoundError):  # another process did
            if place.stat().st_mtime <= time:
                shutil.rmtree(place) if place.is_dir() else place.unlink()


@contextmanager
def folder_written_whole(place: Path, alone: bool = False) -> Iterator[Path]:
    """Yield the folder beside `place` to fill; behind the block it is on the disk, in its place.

    Whatever breaks off the block leaves what stood there before.

    Args:
        place: of the folder.
        alone: no other process writes there meanwhile; what a killed one left is taken away.

    Raises:
        OSError: it cannot be written; names `place`, not the folder beside it.
    """
    owner = "" if alone else f".{os.getpid()}"
    part = beside(place, owner)
    with _named(place, part):
        try:
            if alone:
                shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)
            yield part
            keep_folder(place, owner)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def beside(place: Path, owner: str = "") -> Path:
    """Name the folder to fill; nothing takes a name with a dot before it for a finished one."""
    return place.with_name(f".{place.name}{owner}.part")


def keep_folder(place: Path, owner: str = "") -> None:
    """Flush what was written beside `place`, and put it there.

    Raises:
        OSError: it cannot be written; what stood there may be gone, but nothing is torn.
    """
    written = beside(place, owner)
    for path in (*written.rglob("*"), written):
        flush(path)
    if place.exists():
        drop_folder(place, owner)
    written.rename(place)
    flush(place.parent)


def drop_folder(place: Path, owner: str = "") -> None:
    """Delete a folder so that a kill on the way leaves none that looks whole."""
    gone = place.with_name(f".{place.name}{owner}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    place.rename(gone)
    shutil.rmtree(gone)


class AtWorkError(OSError):
    """Another process is at work where one alone may be; `filename` says where."""


def take_lock(lock: Path, place: Path) -> int:
    """Hold a file that stands for a place; the system takes it from a process that dies.

    Args:
        lock: the file; it is made if need be, and its folder.
        place: that is worked on alone.

    Returns:
        What gives it back when it is closed.

    Raises:
        AtWorkError: another process holds it.
        OSError: it cannot be written; names `place`.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _about(place, error) from error
    try:
        # Of the process, not of the file: no worker that outlives it holds the place.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink == 0:  # whoever had it has just taken it away
            raise BlockingIOError(errno.EAGAIN, "")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(file)
            raise AtWorkError(error.errno, "another process is at work in it", str(place)) from None
        # A disk that knows no locks.
    return file


@contextmanager
def alone_in(place: Path, lock: Path) -> Iterator[None]:
    """Work on a place that no other process works on meanwhile; leaves no lock behind.

    Raises:
        AtWorkError: another process does.
        OSError: the lock cannot be written.
    """
    file = take_lock(lock, place)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that one process has at a time; the system takes it from one that dies.

    Raises:
        OSError: the file that stands for it cannot be written.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; its folder is made if need be.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_bytes(path, text.encode())


def write_json(path: Path, tree: Any, indent: int | None = 1) -> None:
    """Write a tree of numbers, texts, lists and mappings, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(tree, indent=indent, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote; empty where there is none, or none can be read."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


class RepeatedKeyError(ValueError):
    """An object of JSON has two values under one key."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping of the pairs that `json` read in an object.

    Raises:
        RepeatedKeyError: a key is there twice, and one of its values would be lost.
    """
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise RepeatedKeyError(f'key "{twice}" is there twice; keep one of them')
    return tree


def flush(path: Path) -> None:
    """See that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
