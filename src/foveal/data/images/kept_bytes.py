"""Bytes that were fetched, and the state they were in -> files of one folder, bounded in all.

A file says in which state its bytes were; of another state they are as good as none. Any number of
processes may write and read at once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BufferedReader, RawIOBase
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, TypeAlias

from foveal.errors import StoreError
from foveal.storage import FAILED_WRITES, locked, write_bytes, written_whole

Opened: TypeAlias = "BufferedReader[Any]"

MOST_BYTES = 50 * 10**9
"""Of all that is kept, where nobody says otherwise."""

_STATE = Struct("<4q")
_GRAIN_BYTES = 2**14
"""What one byte of the file that counts stands for."""


class ReadAtPlaces(RawIOBase):
    """Bytes that can be read at any place, as a file."""

    def __init__(
        self, length: int, read_at: Callable[[int, int], bytes], file: BinaryIO | None = None
    ) -> None:
        """Say how they are read.

        Args:
            length: of all.
            read_at: from a place on, reads at most so many bytes, and not past the end.
            file: that is closed with it.
        """
        self._length, self._read_at, self._file, self._at = length, read_at, file, 0

    def count_from(self, first: int) -> None:
        """Call its first byte by another number than 0; what stands before cannot be read."""
        read_at = self._read_at
        self._read_at = lambda place, length: read_at(place - first, length)
        self._length += first

    def readable(self) -> bool:
        """Say so."""
        return True

    def seekable(self) -> bool:
        """Say so."""
        return True

    def readinto(self, into: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Read from where the last reader stopped."""
        wanted = min(len(into), self._length - self._at)
        if wanted <= 0:
            return 0
        read = self._read_at(self._at, wanted)
        into[: len(read)] = read
        self._at += len(read)
        return len(read)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        """Say where the next reader begins."""
        return self._at

    def close(self) -> None:
        """Close the file too."""
        if self._file:
            self._file.close()
        super().close()


def open_stretch(file: BinaryIO, start: int, length: int) -> Opened:
    """Read a stretch of an open file, a block at a time."""

    def read_at(place: int, length: int) -> bytes:
        return os.pread(file.fileno(), length, start + place)

    return BufferedReader(ReadAtPlaces(length, read_at, file), 2**16)


def stamp_of(status: os.stat_result) -> list[int]:
    """Tell a file from any that stood in its place before, though length and time were kept.

    Its time of change can be set, as copying does; when that was done cannot.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def bound_kept(folder: Path, most_bytes: int) -> None:
    """Say how many bytes a folder may keep, for all processes from now on.

    Raises:
        OSError: it cannot be written.
    """
    if _most_bytes(folder) != most_bytes or not (folder / "most_bytes").exists():
        write_bytes(folder / "most_bytes", str(most_bytes).encode())


@contextmanager
def _writing() -> Iterator[None]:
    """Say of a disk that takes no more what to do about it: no image is at fault."""
    try:
        yield
    except OSError as error:
        if error.errno not in FAILED_WRITES:
            raise
        place = error.filename or "data.object_cache"
        raise StoreError(
            f"cannot write to {place}: {error.strerror}; free space, or give less of it or another "
            "folder: data.object_cache_gb, data.object_cache"
        ) from error


@_writing()
def keep(folder: Path, name: str, state: list[int], fill: Callable[[BinaryIO], object]) -> Opened:
    """Keep bytes under a name, in place of older ones, and open them.

    Args:
        folder: that keeps.
        name: of the bytes, any text.
        state: four numbers.
        fill: writes the bytes.

    Raises:
        StoreError: they cannot be written.
    """
    place = _place(folder, name)
    with written_whole(place) as beside:
        with beside.open("wb") as file:
            file.write(_STATE.pack(*state))
            fill(file)
        opened = beside.open("rb", buffering=0)  # before a neighbour's bytes push it out
    size = os.fstat(opened.fileno()).st_size
    with (folder / "written").open("ab") as count:
        count.write(bytes(-(-size // _GRAIN_BYTES)))
        full = count.tell() * _GRAIN_BYTES > _most_bytes(folder) / 10
    if full:
        _drop_oldest(folder)
    return open_stretch(opened, _STATE.size, size - _STATE.size)


def open_kept(folder: Path, name: str, state: list[int] | None = None) -> "Opened | None":
    """Open what is kept under a name; none: nothing is, or of another state than `state`."""
    place = _place(folder, name)
    try:
        file = place.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    if state is not None and _read_state(file) != state:
        file.close()
        return None
    with suppress(OSError):  # pushed out meanwhile, or another user's
        os.utime(place)
    length = os.fstat(file.fileno()).st_size - _STATE.size
    return open_stretch(file, _STATE.size, length)


@_writing()
def write_state(folder: Path, name: str, state: list[int]) -> None:
    """Write down in which state something is by now, whatever is kept of it.

    Raises:
        StoreError: it cannot be written.
    """
    write_bytes(_place(folder, name, "states"), _STATE.pack(*state))


def read_state(folder: Path, name: str, room: str = "states") -> list[int] | None:
    """Read in which state something was said to be, or of `kept` bytes are; none: nobody said."""
    try:
        with _place(folder, name, room).open("rb", buffering=0) as file:
            return _read_state(file)
    except FileNotFoundError:
        return None


def _read_state(file: BinaryIO) -> list[int]:
    return list(_STATE.unpack(os.pread(file.fileno(), _STATE.size, 0)))


def _place(folder: Path, name: str, room: str = "kept") -> Path:
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return folder / room / digest[:2] / digest


def _most_bytes(folder: Path) -> int:
    try:
        return int((folder / "most_bytes").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return MOST_BYTES


def _drop_oldest(folder: Path) -> None:
    """Drop what was opened longest ago, until a tenth of the room is free for what comes next."""
    with locked(folder / ".drop.lock"):
        os.truncate(folder / "written", 0)
        kept = []
        for one in (folder / "kept").glob("??/*"):
            with suppress(FileNotFoundError):
                status = one.stat()
                kept.append((status.st_mtime_ns, status.st_size, one))
        kept.sort()
        room = 0.9 * _most_bytes(folder) - sum(size for _, size, _ in kept)
        for _, size, one in kept:
            if room >= 0:
                break
            one.unlink(missing_ok=True)
            room += size
