"""A path through a zip, tar or Parquet file, as if it were a folder -> where in it the file is.

An archive is read through once; its index is kept in columns, and none is unpacked.
"""

import os
import posixpath
import tarfile
import zipfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from struct import unpack

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import ColumnTable, digest_of, kept_columns
from foveal.data.images.archives import ENDINGS, ArchiveMember, open_stored, state_of
from foveal.data.images.objects import BLOCK_BYTES, called, object_at
from foveal.data.images.parquet_images import ROWS, locate, parquet_file
from foveal.errors import DataError
from foveal.storage import drop_older

INDICES = "archives"
"""Folder of them, beside encoded examples."""

INDICES_AT_HAND = 64
"""Archives whose indices a process keeps open."""


@dataclass(frozen=True)
class ArchiveIndex(ColumnTable):
    """Where each member of an archive is; in the order of the first word of its name's digest."""

    names: NDArray[np.uint64]
    """(members, 2)"""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    packed: NDArray[np.bool_]

    def find(self, archive: Path, name: str) -> ArchiveMember | None:
        """Find a member; of several with one name the last, as unpacking leaves it."""
        wanted = np.frombuffer(digest_of(os.fsencode(name)), np.uint64)
        first, last = (
            int(np.searchsorted(self.names[:, 0], wanted[0], side)) for side in ("left", "right")
        )
        for at in reversed(range(first, last)):
            if self.names[at, 1] == wanted[1]:
                start, length = int(self.starts[at]), int(self.lengths[at])
                return ArchiveMember(archive, start, length, bool(self.packed[at]), name)
        return None


def find_member(
    path: Path, cache: Path | None = None, states: Mapping[str, list[int]] | None = None
) -> ArchiveMember | None:
    """Find what a path through an archive leads to; none: it leads through none, or to nothing.

    Args:
        path: such as `shards/0001.tar/page.png`.
        cache: folder that keeps indices; none: this process does, while it needs them.
        states: of archives that were looked at before, by path.

    Raises:
        DataError: the archive is broken or cannot be read at random.
    """
    for parent in path.parents:
        if parent.suffix.lower() in ENDINGS and (object_at(parent) or parent.is_file()):
            try:
                stamp = tuple((states or {}).get(str(parent)) or state_of(parent))
            except FileNotFoundError:  # a folder of a store that is called like an archive
                continue
            name = path.relative_to(parent).as_posix()
            if parent.suffix.lower() != ROWS:
                return _index(parent, stamp, cache).find(parent, name)
            if place := parquet_file(parent).find(name):
                return _in_rows(ArchiveMember(parent, *place, False, name))
            found = _index(parent, stamp, cache).find(parent, name)
            return found and _in_rows(found)
    return None


def _in_rows(member: ArchiveMember) -> ArchiveMember:
    """Say where the bytes of a row's image lie; the row, where they lie in no one piece."""
    found = locate(member.archive, member.name, member.start, member.length)
    if found is None:
        return member._replace(in_row=True)
    return member._replace(start=found[0], length=found[1])


def forget_indices(encoded: Path, time: float) -> None:
    """Forget where things are in archives, as it was found before a time, in seconds since 1970."""
    drop_older((encoded / INDICES).glob("[!.]*"), time)  # no locks
    _index.cache_clear()


@lru_cache(INDICES_AT_HAND)
def _index(archive: Path, stamp: tuple[int, ...], cache: Path | None) -> ArchiveIndex:
    if cache is None:
        return _read_index(archive)
    state = digest_of(f"{archive.resolve()} {stamp}".encode("utf-8", "surrogateescape"), 1).hex()
    place = cache / f"{archive.stem}-{state}"
    return ArchiveIndex.of_arrays(kept_columns(place, lambda: [_read_index(archive).arrays()]))


def _read_index(archive: Path) -> ArchiveIndex:
    read = _READERS[archive.suffix.lower()]
    digests, numbers = bytearray(), array("q")
    try:
        for name, start, length, packed in read(archive):
            digests += digest_of(os.fsencode(posixpath.normpath(name)))
            numbers.extend((start, length, packed))
    except OSError as error:
        raise DataError(f"{called(archive)}: {error.strerror}; give an archive to read") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise DataError(f"{called(archive)}: broken archive ({error}); replace it") from error
    names = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    table = np.frombuffer(numbers, np.int64).reshape(-1, 3)
    order = np.argsort(names[:, 0], kind="stable")
    starts, lengths, deflated = (np.ascontiguousarray(table[order, column]) for column in range(3))
    return ArchiveIndex(names[order], starts, lengths, deflated.astype(np.bool_))


_Found = tuple[str, int, int, bool]


def _tar_members(archive: Path) -> Iterator[_Found]:
    with open_stored(archive, BLOCK_BYTES) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (one := tar.next()) is not None:
            if one.isreg() and not one.issparse():
                yield one.name, one.offset_data, one.size, False
            vars(tar)["members"].clear()  # a million of them would stay


def _zip_members(archive: Path) -> Iterator[_Found]:
    with open_stored(archive, BLOCK_BYTES) as file, zipfile.ZipFile(file) as zipped:
        for one in zipped.infolist():
            if one.is_dir():
                continue
            if one.flag_bits & 1 or one.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise DataError(
                    f"{called(archive)}: {one.filename} is encrypted or packed in a rare way; "
                    "zip it anew"
                )
            file.seek(one.header_offset)
            header = file.read(30)
            if len(header) < 30:
                raise zipfile.BadZipFile("it is cut short")
            name_length, extra_length = unpack("<HH", header[26:30])
            start = one.header_offset + 30 + name_length + extra_length
            yield one.filename, start, one.compress_size, one.compress_type != zipfile.ZIP_STORED


def _named_rows(archive: Path) -> Iterator[_Found]:
    return parquet_file(archive).names()


_READERS = {".tar": _tar_members, ".zip": _zip_members, ROWS: _named_rows}
