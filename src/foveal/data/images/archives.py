"""A path to a file, into a zip, tar or Parquet file or to an object -> its bytes and its state.

What lies in an archive has a path of its own, `pages.tar#512+20480/page.png`, which says all that
is needed to open it: no process that opens images needs an index. Of an image that a Parquet file
holds in compressed pages it says the row and the place there, `pages.parquet#17+0r/page.png`.
"""

import io
import os
import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from foveal.data.images.frames import file_of
from foveal.data.images.kept_bytes import open_stretch, stamp_of
from foveal.data.images.objects import (
    BY_URL,
    StoredObject,
    called,
    object_at,
    object_state,
    open_object,
    open_remote,
)
from foveal.data.images.parquet_images import ROWS, image_bytes
from foveal.data.parallel import side_by_side
from foveal.errors import DataError

ENDINGS = (".tar", ".zip", ROWS)
"""Of archives; a compressed tar cannot be read at random."""

_PLACE = re.compile(r"(.+\.(?i:tar|zip|parquet))#(\d+)\+(\d+)([rz]?)/(.+)", re.DOTALL)


class ArchiveMember(NamedTuple):
    """A file in an archive."""

    archive: Path
    start: int
    """Byte, or the row that it lies in."""

    length: int
    """Bytes, or its place among those of the row."""

    packed: bool
    """Whether its bytes are deflated."""

    name: str

    in_row: bool = False
    """Whether where its bytes lie is only known of its row, in a Parquet file."""

    @property
    def path(self) -> Path:
        """Write it as a path, which `member_at` reads."""
        packed = "r" if self.in_row else "z" if self.packed else ""
        return Path(f"{self.archive}#{self.start}+{self.length}{packed}/{self.name}")


def member_at(path: str | Path) -> ArchiveMember | None:
    """Read the path of a member; none: it is that of a file."""
    text = str(path)
    found = _PLACE.fullmatch(text) if "#" in text else None
    if not found:
        return None
    archive, start, length, packed, name = found.groups()
    whole = Path(archive)
    return ArchiveMember(whole, int(start), int(length), packed == "z", name, packed == "r")


def containing_file(path: str | Path) -> Path:
    """Name the file that holds what a path leads to: itself, its clip, the archive around it."""
    stored = file_of(Path(path))
    member = member_at(stored)
    return member.archive if member else stored


def object_around(path: str | Path) -> StoredObject | None:
    """Find the object that holds what a path leads to; none: a file does."""
    return object_at(containing_file(path)) if BY_URL in str(path) else None


def state_of(path: str | Path) -> list[int]:
    """Tell a file, or the archive around it, from any that stood in its place before.

    Raises:
        OSError: it is gone.
        StoreError: it is in a store that does not answer.
    """
    stored = object_around(path)
    return object_state(stored) if stored else stamp_of(os.stat(containing_file(path)))


def size_bytes(path: Path) -> int:
    """Count the bytes of a file, or of what an archive holds of it; -1: it is gone."""
    member = member_at(file_of(path))
    try:
        if member and member.in_row:
            return len(image_bytes(member.archive, member.name, member.start, member.length))
        whole, *_ = state_of(path)
    except OSError:
        return -1
    return member.length if member else whole


def open_stored(path: Path, block_bytes: int | None = None) -> BinaryIO:
    """Open a file, or what an archive holds of it, of which no more is read than is asked for.

    Args:
        path: of it.
        block_bytes: of an object fetch no more than so many bytes at a time, where they are read,
            and keep none; by default all of it is fetched and kept.

    Raises:
        OSError: there is no such file.
        DataError: the member is cut short or broken.
        StoreError: it is in a store that does not answer.
    """
    stored = file_of(path)
    member = member_at(stored)
    if member and member.in_row:
        content = image_bytes(member.archive, member.name, member.start, member.length)
        return io.BytesIO(content)
    holder = member.archive if member else stored
    stretch = (member.start, member.length) if member else ()
    if one := object_at(holder):
        part = (
            open_object(one, *stretch)
            if block_bytes is None
            else open_remote(one, block_bytes, *stretch)
        )
    elif member:
        part = open_stretch(holder.open("rb", buffering=0), *stretch)
    else:
        return holder.open("rb")
    if not (member and member.packed):
        return part
    with part:
        try:
            return io.BytesIO(zlib.decompress(part.read(), -zlib.MAX_WBITS))
        except zlib.error as error:
            raise DataError(f"{called(path)}: broken archive ({error}); replace it") from error


def fetch_side_by_side(paths: Iterable[Path]) -> None:
    """Fetch what lies in stores at once, so that it is at hand when it is opened."""
    stored = {file_of(path) for path in paths if object_around(path)}
    for _ in side_by_side(_fetch_to_keep, stored) if len(stored) > 1 else ():
        pass


def _fetch_to_keep(path: Path) -> None:
    with suppress(OSError, DataError):  # whoever opens it says what is wrong
        open_stored(path).close()
