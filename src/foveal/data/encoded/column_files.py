"""Columns of numbers, lists and texts <-> files that every process maps: a million rows, no object.

A folder of columns is written whole or not at all. What is read of it is the system's memory, one
copy for all processes of a machine, which it takes back when it needs it.
"""

import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from glob import escape
from hashlib import blake2b
from itertools import accumulate, chain
from pathlib import Path
from shutil import rmtree
from typing import Any, BinaryIO, Self, TypeVar, get_type_hints, overload

import numpy as np
from numpy.typing import NDArray

from foveal.storage import folder_written_whole, locked

Arrays = Mapping[str, NDArray[Any]]
_Item = TypeVar("_Item", covariant=True)
_Number = TypeVar("_Number", bound=np.generic)

KINDS = "columns.json"
"""Names each column's type and the form of its rows; written last: a folder has it or is torn."""

BLOCK_ROWS = 2**19
"""Rows that are worked on at once where all are: what is in memory besides the maps."""


class Listed(Sequence[_Item]):
    """Base of a sequence of many things, none of them kept: each is made when it is asked for."""

    @abstractmethod
    def at(self, index: int) -> _Item:
        """Make one, counted from the first."""

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | list[_Item]:
        """Make one, or several."""
        if isinstance(index, slice):
            return [self.at(one) for one in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])


class EndToEnd(Listed[_Item]):
    """Several sequences, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[_Item]]) -> None:
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[int, int]:
        """Say in which of them a thing is, and its place there."""
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

    def at(self, index: int) -> _Item:
        """Make one of the part that it is in."""
        part, within = self.place(index)
        return self.parts[part][within]


@dataclass(frozen=True)
class Picked(Listed[_Item]):
    """Some things of a sequence, by their places in it."""

    whole: Sequence[_Item]
    places: Sequence[int] | NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def at(self, index: int) -> _Item:
        """Make the thing at a place."""
        return self.whole[int(self.places[index])]


@dataclass(frozen=True)
class Ragged:
    """Many short lists of whole numbers, end to end."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """(lists + 1,) Where each list starts, and where the last one ends."""

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> "Ragged":
        """Lay lists end to end."""
        kept = list(lists)
        values = np.fromiter(chain.from_iterable(kept), np.int32)
        return cls(values, offsets_of([*map(len, kept)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: Sequence[int]) -> list[list[int]]:
        """Read the lists at `indices`."""
        starts = self.offsets[np.asarray(indices, np.int64)].tolist()
        ends = self.offsets[np.asarray(indices, np.int64) + 1].tolist()
        return [self.values[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Texts(Listed[str]):
    """Many short texts, end to end."""

    content: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    """(texts + 1,) Where each text starts, and where the last one ends."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Lay texts end to end."""
        # A path may hold bytes that are no UTF-8; Python keeps them as surrogates.
        kept = [text.encode("utf-8", "surrogateescape") for text in texts]
        return cls(np.frombuffer(b"".join(kept), np.uint8), offsets_of([*map(len, kept)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def at(self, index: int) -> str:
        """Read a text."""
        start, end = self.offsets[index : index + 2].tolist()
        return self.content[start:end].tobytes().decode("utf-8", "surrogateescape")


def offsets_of(lengths: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int64]:
    """Say where each of some lists starts that lie end to end, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class ColumnTable:
    """Base of a dataclass whose fields are arrays, `Ragged` and `Texts`: a table, row by row."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name every array of it."""
        named: dict[str, NDArray[Any]] = {}
        for name, value in vars(self).items():
            if isinstance(value, Ragged | Texts):
                named |= {f"{name}.{part}": array for part, array in vars(value).items()}
            else:
                named[name] = value
        return named

    @classmethod
    def of_arrays(cls, named: Arrays) -> Self:
        """Put named arrays together again.

        Raises:
            KeyError: one is missing.
        """
        kinds = get_type_hints(cls)
        made = {}
        for field in fields(cls):  # type: ignore[arg-type]
            kind = kinds[field.name]
            if kind in (Ragged, Texts):
                parts = (named[f"{field.name}.{part.name}"] for part in fields(kind))
                made[field.name] = kind(*parts)
            else:
                made[field.name] = named[field.name]
        return cls(**made)


def write_columns(folder: Path, chunks: Iterable[Arrays]) -> None:
    """Lay arrays of the same names end to end in the files of a folder, a piece at a time.

    Offsets go on from where those of the piece before ended.

    Raises:
        OSError: the disk is full, say; numpy's own writing would not notice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, tuple[str, list[int]]] = {}
    files: dict[str, BinaryIO] = {}
    ends: dict[str, int] = {}
    with ExitStack() as opened:
        for named in chunks:
            for name, array in named.items():
                is_first = name not in files
                if is_first:
                    kinds[name] = (array.dtype.str, list(array.shape[1:]))
                    files[name] = opened.enter_context((folder / name).open("wb"))
                if name.endswith(".offsets"):
                    last = ends.get(name, 0)
                    ends[name] = last + int(array[-1])
                    array = array if is_first else array[1:] + last
                files[name].write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    (folder / KINDS).write_text(json.dumps(kinds), encoding="utf-8")


def map_columns(folder: Path) -> dict[str, NDArray[Any]] | None:
    """Map the columns of a folder; none where it does not hold any."""
    try:
        kinds = json.loads((folder / KINDS).read_text(encoding="utf-8"))
        return {name: _map(folder / name, *kind) for name, kind in kinds.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # absent or broken: only time is lost


def _map(path: Path, kind: str, row: list[int]) -> NDArray[Any]:
    if not path.stat().st_size:
        return np.zeros((0, *row), kind)
    # As a plain array: a slice of numpy's own class for maps costs ten times as much.
    return np.memmap(path, np.dtype(kind), "r").view(np.ndarray).reshape(-1, *row)


def kept_columns(
    place: Path, make: Callable[[], Iterable[Arrays]], kept: int = 0
) -> dict[str, NDArray[Any]]:
    """Map columns that one process works out for all.

    Args:
        place: their folder, `KIND-STATE`.
        make: works them out, a piece at a time.
        kept: folders of this kind that stay; 0: all.

    Raises:
        OSError: they cannot be written.
    """
    while (known := map_columns(place)) is None:
        with locked(place.with_name(f".{_kind(place)}.lock")):
            if map_columns(place) is None:
                with folder_written_whole(place) as beside:
                    write_columns(beside, make())
        if kept:
            forget_others(place, kept)
    return known


def forget_others(place: Path, kept: int) -> None:
    """Keep a folder, and the latest others of its kind; who has one mapped that goes keeps it."""
    others = [one for one in place.parent.glob(f"{escape(_kind(place))}-*") if one != place]
    with suppress(FileNotFoundError):  # another process lets go of them too
        for old in sorted(others, key=lambda one: one.stat().st_mtime)[: 1 - kept or None]:
            rmtree(old, ignore_errors=True)


def _kind(place: Path) -> str:
    return place.name.rpartition("-")[0]


def end_to_end(arrays: Sequence[NDArray[_Number]]) -> NDArray[_Number]:
    """Lay arrays end to end; one alone stays where it is mapped."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def blocks(rows: int) -> Iterator[slice]:
    """Cut rows into pieces that fit in memory."""
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def digest_of(content: bytes, words: int = 2) -> bytes:
    """Name content by some 64-bit words; two of them are taken for the content itself."""
    return blake2b(content, digest_size=8 * words).digest()


def number_by_first(digests: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number equal rows alike, in the order in which each is met first.

    Args:
        digests: (rows, 2).

    Returns:
        numbers, (rows,), and where each number is met first, (numbers,).
    """
    words = np.ascontiguousarray(digests).view("V16").ravel()
    _, firsts, which = np.unique(words, return_index=True, return_inverse=True)
    ranks = np.empty(len(firsts), np.int32)
    ranks[np.argsort(firsts)] = np.arange(len(firsts), dtype=np.int32)
    return ranks[which], np.sort(firsts)


def sum_lists(
    each: NDArray[np.int32], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Add up stretches of values, (stretches,)."""
    before = np.concatenate([[0], np.cumsum(each, dtype=np.int64)])
    found: NDArray[np.int32] = (before[ends] - before[starts]).astype(np.int32)
    return found
