"""A JSONL file -> any of its examples at once, found by an index and read from the disk."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from glob import escape
from hashlib import sha256
from io import FileIO
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import EndToEnd, Listed, digest_of, kept_columns
from foveal.data.example import (
    Example,
    holds_anything,
    naming_unreadable,
    parse_example,
    read_examples,
)
from foveal.data.images.kept_bytes import stamp_of
from foveal.errors import DataError
from foveal.storage import drop_older

BLOCK_BYTES = 2**24
"""Bytes that are searched for line breaks at once."""


class Lines(Listed[bytes]):
    """The lines of a file that hold anything; none is kept, the system caches what is read."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        """Index a file.

        Args:
            path: of the file.
            cache: what the name of a folder begins with that remembers the index while the file
                stays the same.

        Raises:
            DataError: the file cannot be read.
            OSError: the index cannot be written.
        """
        self.path = path
        with naming_unreadable(path):
            self._file = path.open("rb", buffering=0)
        finalize(self, self._file.close)
        self._spans = _kept_spans(cache, self._file) if cache else _spans(self._file)

    def __len__(self) -> int:
        return len(self._spans)

    def at(self, index: int) -> bytes:
        """Read a line."""
        start, end = self._spans[index].tolist()
        return _read(self._file, start, end - start)

    def cut(self, chunk_bytes: int) -> list[tuple[int, int]]:
        """Cut the lines into pieces of so many bytes, and of whole lines: from where, to where."""
        cuts = [0]
        while cuts[-1] < len(self):
            last = int(self._spans[cuts[-1]][0]) + chunk_bytes
            cuts.append(bisect_right(self._spans, last, key=itemgetter(0)))
        return list(pairwise(cuts))

    def number(self, index: int) -> int:
        """Count from 1 which line of the file it is, empty ones too."""
        position, end, number = 0, int(self._spans[index][0]), 1
        while position < end:
            block = _read(self._file, position, min(BLOCK_BYTES, end - position))
            number += block.count(b"\n")
            position += len(block)
        return number


def _read(file: FileIO, start: int, length: int) -> bytes:
    # By place, not from where the last reader stopped: forked processes share that. A mapped file
    # would count as memory of the run, and end it without a word when it is cut short.
    content = b""
    with naming_unreadable(file.name):
        while len(content) < length:
            more = os.pread(file.fileno(), length - len(content), start + len(content))
            if not more:
                raise DataError(f"{file.name}: became shorter while it was read; start again")
            content += more
    return content


def _spans(file: FileIO) -> NDArray[np.int64]:
    """Find where each line that holds anything starts and ends, its break left out."""
    size, breaks = os.fstat(file.fileno()).st_size, [np.zeros(0, np.int64)]
    for start in range(0, size, BLOCK_BYTES):
        block = np.frombuffer(_read(file, start, min(BLOCK_BYTES, size - start)), np.uint8)
        breaks.append(np.flatnonzero(block == ord("\n")) + start)
    ends = np.concatenate([*breaks, [size]])
    spans = np.stack([np.concatenate([[0], ends[:-1] + 1]), ends], axis=1)
    kept = spans[:, 1] > spans[:, 0]
    # No example is this short, so the long ones need not be looked at.
    for index in np.flatnonzero(kept & (spans[:, 1] - spans[:, 0] < 16)).tolist():
        start, end = spans[index].tolist()
        kept[index] = holds_anything(_read(file, start, end - start))
    return spans if kept.all() else spans[kept]


def _kept_spans(kept: Path, data: FileIO) -> NDArray[np.int64]:
    """Map a remembered index if it is of this very file, else write it."""
    state = digest_of(repr(stamp_of(os.fstat(data.fileno()))).encode(), 1).hex()
    place = kept.with_name(f"{kept.name}-{state}")
    return kept_columns(place, lambda: [{"spans": _spans(data)}], 1)["spans"]


class Examples(Listed[Example]):
    """The examples of one file or several, in order; each is read when it is asked for."""

    def __init__(
        self, paths: Sequence[Path], cache: Path | None = None, not_before: float = 0.0
    ) -> None:
        """Index the files.

        Args:
            paths: of JSONL files.
            cache: folder for their indices.
            not_before: take no index that was made earlier, in seconds since 1970.

        Raises:
            DataError: a file cannot be read or holds no example.
        """
        indices = [cache / _index_name(path) if cache else None for path in paths]
        for index in filter(None, indices):
            drop_older(index.parent.glob(f"{escape(index.name)}-*"), not_before)
        self.files = [Lines(path, index) for path, index in zip(paths, indices, strict=True)]
        self._lines = EndToEnd(self.files)
        for file in self.files:
            if not len(file):
                raise DataError(f"{file.path}: no examples; write one conversation a line")

    def __len__(self) -> int:
        return len(self._lines)

    def at(self, index: int) -> Example:
        """Read an example.

        Raises:
            DataError: the line is no example; it is named by its number.
        """
        try:
            return parse_example(self._lines[index])
        except ValueError as error:  # only now does the number matter, which costs a reading
            path, number = self.find(index)
            raise DataError(f"{path}:{number}: {error}") from None

    def find(self, index: int) -> tuple[Path, int]:
        """Name the file of an example and the number of its line."""
        part, within = self._lines.place(index)
        return self.files[part].path, self.files[part].number(within)

    def __iter__(self) -> Iterator[Example]:
        for file in self.files:
            yield from read_examples(file.path)


def _index_name(path: Path) -> str:
    where = sha256(os.fsencode(path.resolve())).hexdigest()[:8]
    return f"{path.stem}-{where}-lines"
