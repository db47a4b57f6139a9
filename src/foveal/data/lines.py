"""A JSONL file -> any of its examples at once, mapped into memory and found by an index."""

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from foveal.data.example import Example, parse_example
from foveal.errors import DataError

BLOCK_BYTES = 2**24
"""Bytes that are searched for line breaks at once."""


class Lines(Sequence[bytes]):
    """The lines of a file that hold anything; none is kept, the system caches what is read."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        """Index a file.

        Args:
            path: of the file.
            cache: file that remembers the index while the data file stays the same.

        Raises:
            DataError: the file cannot be read.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            self._spans = np.zeros((0, 2), np.int64)
            return
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; give a JSONL file of examples") from error
        stamp = (status.st_size, status.st_mtime_ns)
        self._spans = _cached_spans(cache, self._bytes, stamp) if cache else _spans(self._bytes)

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        """Read a line, or several."""
        if isinstance(index, slice):
            return [self._bytes[start:end] for start, end in self._spans[index].tolist()]
        start, end = self._spans[index].tolist()
        return self._bytes[start:end]

    def __iter__(self) -> Iterator[bytes]:
        for first in range(0, len(self), 4096):
            yield from self[first : first + 4096]

    def numbered(self) -> Iterator[tuple[int, Example]]:
        """Read every example, with the number of its line in the file.

        Raises:
            DataError: a line is no example.
        """
        number, position = 1, 0
        for line, (start, end) in zip(self, self._spans, strict=True):
            number += self._bytes[position:start].count(b"\n")
            position = end
            try:
                yield number, parse_example(line)
            except ValueError as error:
                raise DataError(f"{self.path}:{number}: {error}") from None

    def number(self, index: int) -> int:
        """Count from 1 which line of the file it is, empty ones too."""
        position, end, number = 0, int(self._spans[index][0]), 1
        while position < end:
            block = self._bytes[position : min(position + BLOCK_BYTES, end)]
            number += block.count(b"\n")
            position += len(block)
        return number


def _spans(content: mmap.mmap) -> NDArray[np.int64]:
    """Find where each line that holds anything starts and ends, its break left out."""
    breaks = []
    for start in range(0, len(content), BLOCK_BYTES):
        block = np.frombuffer(content[start : start + BLOCK_BYTES], np.uint8)
        breaks.append(np.flatnonzero(block == ord("\n")) + start)
    ends = np.concatenate([*breaks, [len(content)]])
    spans = np.stack([np.concatenate([[0], ends[:-1] + 1]), ends], axis=1)
    kept = spans[:, 1] > spans[:, 0]
    # No example is this short, so the long ones need not be looked at.
    for index in np.flatnonzero(kept & (spans[:, 1] - spans[:, 0] < 16)).tolist():
        start, end = spans[index]
        kept[index] = bool(content[start:end].strip())
    return spans[kept]


def _cached_spans(cache: Path, content: mmap.mmap, stamp: tuple[int, int]) -> NDArray[np.int64]:
    """Map a remembered index if it is of this very file, else write it."""
    try:
        known: NDArray[np.int64] = np.load(cache, mmap_mode="r")
        if known.ndim == 2 and known.shape[1] == 2 and tuple(known[-1].tolist()) == stamp:
            return known[:-1]
    except (OSError, ValueError, IndexError, EOFError):
        pass  # absent or broken: only time is lost
    spans = _spans(content)
    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    with beside.open("wb") as file:
        np.save(file, np.concatenate([spans, [stamp]]))
    beside.replace(cache)
    mapped: NDArray[np.int64] = np.load(cache, mmap_mode="r")
    return mapped[:-1]


class Examples(Sequence[Example]):
    """The examples of one file or several, in order; each is read when it is asked for."""

    def __init__(self, paths: Sequence[Path], cache: Path | None = None) -> None:
        """Index the files.

        Args:
            paths: of JSONL files.
            cache: folder for their indices.

        Raises:
            DataError: a file cannot be read or holds no example.
        """
        self.files = [
            Lines(path, cache / f"{place}-{path.stem}-lines.npy" if cache else None)
            for place, path in enumerate(paths)
        ]
        self._ends = list(accumulate(map(len, self.files)))
        for file in self.files:
            if not len(file):
                raise DataError(f"{file.path}: no examples; write one conversation a line")

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Read an example, or several.

        Raises:
            DataError: the line is no example; it is named by its number.
        """
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        file, within = self._place(range(len(self))[index])
        return _parse(file, within)

    def find(self, index: int) -> tuple[Path, int]:
        """Name the file of an example and the number of its line."""
        file, within = self._place(index)
        return file.path, file.number(within)

    def _place(self, index: int) -> tuple[Lines, int]:
        place = bisect_right(self._ends, index)
        return self.files[place], index - (self._ends[place - 1] if place else 0)

    def __iter__(self) -> Iterator[Example]:
        for file in self.files:
            yield from (example for _, example in file.numbered())


def _parse(file: Lines, index: int) -> Example:
    try:
        return parse_example(file[index])
    except ValueError as error:
        raise DataError(f"{file.path}:{file.number(index)}: {error}") from None
