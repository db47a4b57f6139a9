"""A Parquet file and a row of it -> the image there, of which no more than a row group is read.

Columns of bytes hold images, plain or beside their paths (`struct{bytes, path}`), one a row or a
list. A row group can only be read forwards: who goes through a file reads it once, and who jumps
reads a group's column up to the row. Where pages are not compressed, as `datasets` writes images,
an image is found once and from then on read as one of a tar file. In memory is a page at a time.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path
from struct import pack
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

from foveal.data.images.kept_bytes import open_stretch, read_state, stamp_of
from foveal.data.images.objects import (
    HEADER_BYTES,
    called,
    object_at,
    object_state,
    open_object,
    open_remote,
)
from foveal.errors import DataError, UserError, one_line

ROWS = ".parquet"
"""Ending of such files."""

FOOTERS_AT_HAND, READERS_AT_HAND = 64, 4
"""Files whose ends a process keeps, and columns that it is going through."""

BLOCKS_AT_HAND, BLOCK_BYTES = 4, 2**22
"""Blocks of rows that a reader keeps, as who goes forwards in threads goes back a little."""

READ_BYTES, SEARCHED_BYTES = 2**20, 2**16
"""What is read of a column at once, and what is looked through for an image."""


class ParquetFile(NamedTuple):
    """What the end of a file says of it."""

    path: Path
    state: tuple[int, ...]
    footer: Any
    leaves: dict[str, int]
    """Number of each thing that is stored."""

    columns: dict[str, str]
    """Columns that hold images, and what of them holds the bytes."""

    ends: list[int]
    """The row behind each row group."""

    def split(self, name: str) -> tuple[str, str]:
        """Split `COLUMN/REST`, where an only column may be left out; empty: there is none such."""
        first, _, rest = name.partition("/")
        if first in self.columns:
            return first, rest
        return next(iter(self.columns)) if len(self.columns) == 1 else "", name

    def find(self, name: str) -> tuple[int, int] | None:
        """Read the number of an image's row, from 0, and its place there: `7` or `7/1`."""
        column, rest = self.split(name)
        row, _, place = rest.partition("/")
        if not (column and row.isdecimal() and (place or "0").isdecimal()):
            return None
        return (int(row), int(place or 0)) if int(row) < self.ends[-1] else None

    def names(self) -> Iterator[tuple[str, int, int, bool]]:
        """Go through the paths that images had: path, row, place, and that it is not packed."""
        for column, leaf in self.columns.items():
            named = f"{leaf.removesuffix('.bytes')}.path"
            rows = range(self.ends[-1] if named in self.leaves else 0)
            for row in rows:
                for place, name in enumerate(_values(self, named, row).to_pylist()):
                    if name:
                        whole = name if len(self.columns) == 1 else f"{column}/{name}"
                        yield whole, row, place, False


def parquet_file(path: Path) -> ParquetFile:
    """Read the end of a file, once while the file stays what it is.

    Raises:
        OSError: there is no such file.
        DataError: it is no Parquet file.
        UserError: the package that reads such files is missing.
    """
    if one := object_at(path):
        # What was said at the start counts: a store would be asked for every image.
        state = read_state(one.cache, one.url) or object_state(one)
    else:
        state = stamp_of(path.stat())
    return _parquet_file(path, tuple(state))


@lru_cache(FOOTERS_AT_HAND)
def _parquet_file(path: Path, state: tuple[int, ...]) -> ParquetFile:
    one = object_at(path)
    with _naming(path), open_remote(one, HEADER_BYTES) if one else path.open("rb") as file:
        footer = _parquet().read_metadata(file)
    stored = [footer.schema.column(at) for at in range(len(footer.schema))]
    held: dict[str, list[str]] = {}
    for one in stored:
        if one.physical_type == "BYTE_ARRAY" and one.logical_type.type == "NONE":
            held.setdefault(one.path.partition(".")[0], []).append(one.path)
    columns = {name: leaves[0] for name, leaves in held.items() if len(leaves) == 1}
    ends = accumulate(footer.row_group(at).num_rows for at in range(footer.num_row_groups))
    leaves = {one.path: number for number, one in enumerate(stored)}
    return ParquetFile(path, state, footer, leaves, columns, [*ends] or [0])


def image_bytes(path: Path, name: str, row: int, place: int) -> bytes:
    """Read an image of a row.

    Args:
        path: of the Parquet file.
        name: that says in which column the image is.
        row: from 0.
        place: among the images of the row, from 0.

    Raises:
        OSError: there is no such file.
        DataError: the row holds no such image, or the file is broken.
        StoreError: it is in a store that does not answer.
    """
    file = parquet_file(path)
    column, _ = file.split(name)
    if column and row < file.ends[-1]:
        values = _values(file, file.columns[column], row)
        if place < len(values) and values[place].is_valid:
            return bytes(values[place].as_py())
    raise DataError(f"{called(path)}: holds no image {name}; name another")


def locate(path: Path, name: str, row: int, place: int) -> tuple[int, int] | None:
    """Find at which byte an image begins, and how many it has; none: it is not in one piece.

    Raises:
        DataError: as `image_bytes`.
        StoreError: it is in a store that does not answer.
    """
    content = image_bytes(path, name, row, place)
    file = parquet_file(path)
    start = _reader_of(file, file.columns[file.split(name)[0]]).find(content, row)
    return (start, len(content)) if start else None


def _reader_of(file: ParquetFile, leaf: str) -> "_Reader":
    return _reader(file.path, file.state, leaf, os.getpid())


def _values(file: ParquetFile, leaf: str, row: int) -> Any:
    values = _reader_of(file, leaf).read(row)
    while values.type.num_fields:  # a list, or a struct of the one thing that is read
        values = values.field(0) if hasattr(values, "field") else values.flatten()
    return values


@lru_cache(READERS_AT_HAND)
def _reader(path: Path, state: tuple[int, ...], leaf: str, process: int) -> "_Reader":
    return _Reader(_parquet_file(path, state), leaf)


class _Reader:
    """Goes forwards through a column, a block of rows at a time; to go back it begins anew."""

    def __init__(self, file: ParquetFile, leaf: str) -> None:
        self._file, self._leaf = file, leaf
        self._lock = Lock()
        self._blocks: dict[int, Any] = {}  # by the number of their first row
        self._group, self._next = -1, 0
        self._coming: Iterator[Any] = iter(())
        self._found = 0  # where the image ends that was found last

    def read(self, row: int) -> Any:
        """Read a row of the column, as an array of one."""
        with self._lock, _naming(self._file.path):
            first = next((at for at in self._blocks if at <= row < at + len(self._blocks[at])), -1)
            if first < 0:
                first = self._go_to(row)
            return self._blocks[first].slice(row - first, 1)

    def _go_to(self, row: int) -> int:
        group = bisect_right(self._file.ends, row)
        if group != self._group or row < self._next:
            self._begin(group)
        while self._next <= row:
            rows = next(self._coming, None)
            if rows is None:
                raise ValueError("it is cut short")
            first, self._next = self._next, self._next + len(rows)
            self._blocks[first] = rows.column(0)
            if len(self._blocks) > BLOCKS_AT_HAND:
                del self._blocks[next(iter(self._blocks))]
        return first

    def find(self, content: bytes, row: int) -> int:
        """Find where the bytes of an image lie; 0: nowhere in one piece."""
        with self._lock:
            chunk = self._chunk(bisect_right(self._file.ends, row))
            if chunk.compression != "UNCOMPRESSED":
                return 0
            start, end = _stretch(chunk)
            wanted = pack("<I", len(content)) + content
            step = max(SEARCHED_BYTES, len(content))
            with _open_chunk(self._file.path, chunk) as source:
                # Most are behind the last; a page's beginning may lie between.
                last = self._found if start < self._found < end else start
                for at in chain(range(last, end, step), range(start, last, step)):
                    source.seek(at)
                    found = source.read(len(wanted) + step).find(wanted)
                    if found >= 0:
                        self._found = at + found + len(wanted)
                        return self._found - len(content)
            return 0

    def _chunk(self, group: int) -> Any:
        return self._file.footer.row_group(group).column(self._file.leaves[self._leaf])

    def _begin(self, group: int) -> None:
        footer, chunk = self._file.footer, self._chunk(group)
        self._group, self._next = group, self._file.ends[group - 1] if group else 0
        rows = footer.row_group(group)
        source = _open_chunk(self._file.path, chunk)
        opened = _parquet().ParquetFile(
            source, metadata=footer, buffer_size=READ_BYTES, pre_buffer=False
        )
        self._coming = opened.iter_batches(
            batch_size=max(1, BLOCK_BYTES * rows.num_rows // max(chunk.total_uncompressed_size, 1)),
            row_groups=[group],
            columns=[self._leaf],
            use_threads=False,  # which a forked process would wait for in vain
        )


def _stretch(chunk: Any) -> tuple[int, int]:
    starts = chunk.data_page_offset, chunk.dictionary_page_offset
    start = min(one for one in starts if one)
    return start, start + chunk.total_compressed_size


def _open_chunk(path: Path, chunk: Any) -> BinaryIO:
    """Open a file to read a chunk of it, which alone is fetched where the file is an object."""
    start, end = _stretch(chunk)
    if one := object_at(path):
        part = open_object(one, start, end - start)
        part.raw.count_from(start)
        return part
    return open_stretch(path.open("rb", buffering=0), 0, end)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet needs the package pyarrow: pip install foveal[data]") from error
    return parquet


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise DataError(f"{called(path)}: broken Parquet file ({reason}); replace it") from error
