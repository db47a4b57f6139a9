"""A path into a zip or tar file -> its bytes, read at random, nothing unpacked.

What lies in an archive has a path of its own, `pages.tar#512+20480/page.png`, which says all that
is needed to open it: no process that opens images needs an index.
"""

import io
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from foveal.data.frames import file_of
from foveal.errors import DataError

ENDINGS = (".tar", ".zip")
"""Of archives; a compressed tar cannot be read at random."""

_PLACE = re.compile(r"(.+\.(?i:tar|zip))#(\d+)\+(\d+)(z?)/(.+)", re.DOTALL)


class ArchiveMember(NamedTuple):
    """A file in an archive."""

    archive: Path
    start: int
    length: int
    packed: bool
    """Whether its bytes are deflated."""

    name: str

    @property
    def path(self) -> Path:
        """Write it as a path, which `member_at` reads."""
        packed = "z" if self.packed else ""
        return Path(f"{self.archive}#{self.start}+{self.length}{packed}/{self.name}")


def member_at(path: str | Path) -> ArchiveMember | None:
    """Read the path of a member; none: it is that of a file."""
    text = str(path)
    found = _PLACE.fullmatch(text) if "#" in text else None
    if not found:
        return None
    archive, start, length, packed, name = found.groups()
    return ArchiveMember(Path(archive), int(start), int(length), bool(packed), name)


def containing_file(path: str | Path) -> Path:
    """Name the file that holds what a path leads to: itself, its clip, the archive around it."""
    stored = file_of(Path(path))
    member = member_at(stored)
    return member.archive if member else stored


def state_of(path: str | Path) -> list[int]:
    """Tell a file, or the archive around it, from any that stood in its place before.

    Raises:
        OSError: it is gone.
    """
    return stamp_of(os.stat(containing_file(path)))


def stamp_of(status: os.stat_result) -> list[int]:
    """Tell a file from any that stood in its place before, though length and time were kept.

    Its time of change can be set, as copying does; when that was done cannot.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def size_bytes(path: Path) -> int:
    """Count the bytes of a file, or of what an archive holds of it; -1: it is gone."""
    stored = file_of(path)
    member = member_at(stored)
    if member and member.archive.exists():
        return member.length
    return stored.stat().st_size if stored.exists() else -1


def open_stored(path: Path) -> "io.BufferedReader[Any] | io.BytesIO":
    """Open a file, or what an archive holds of it, of which no more is read than is asked for.

    Raises:
        OSError: there is no such file.
        DataError: the member is cut short or broken.
    """
    stored = file_of(path)
    member = member_at(stored)
    if member is None:
        return stored.open("rb")
    file = member.archive.open("rb", buffering=0)
    part = io.BufferedReader(_Part(file, member), 2**16)
    if not member.packed:
        return part
    with part:
        try:
            return io.BytesIO(zlib.decompress(part.read(), -zlib.MAX_WBITS))
        except zlib.error as error:
            raise DataError(f"{path}: broken archive ({error}); replace it") from error


class _Part(io.RawIOBase):
    """A stretch of a file, as a file."""

    def __init__(self, file: io.RawIOBase, member: ArchiveMember) -> None:
        self._file = file
        self._start, self._length, self._at = member.start, member.length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, into: "bytearray | memoryview") -> int:  # type: ignore[override]
        wanted = max(min(len(into), self._length - self._at), 0)
        read = os.pread(self._file.fileno(), wanted, self._start + self._at)
        into[: len(read)] = read
        self._at += len(read)
        return len(read)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()
