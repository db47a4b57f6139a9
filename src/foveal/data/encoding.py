"""A JSONL file + a processor -> its encoded examples: worked out once, mapped by every process.

Encoding is done in pieces, each written whole: a run that is killed meanwhile goes on behind the
last. What is kept is named by all that it hangs on, so that it can be out of date in no way.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from glob import escape
from hashlib import blake2b
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

import foveal
from foveal.data.columns import (
    Arrays,
    ColumnWriter,
    Ragged,
    Texts,
    lay_end_to_end,
    map_columns,
    number_by_first,
)
from foveal.data.encode import Encoded, TurnProcessor, encode
from foveal.data.example import ImageFolder, holds_anything, parse_example
from foveal.data.media import stamp_of
from foveal.data.packed import ExampleColumns, ExamplesBuilder
from foveal.data.parallel import parallel
from foveal.data.remarks import SHOWN, look_at
from foveal.errors import DataError
from foveal.storage import folder_written_whole, write_bytes, write_json

if TYPE_CHECKING:
    from rich.console import Console

PIECE_BYTES = 2**23
"""Bytes of a file that are encoded together: what a kill costs, and a process is handed."""

FEWEST_PIECES = 4
"""Pieces that are worth a second process: it needs seconds to start."""

NOTICED, ABOUT = "noticed.json", "about"


@dataclass(frozen=True)
class Noticed:
    """What was noticed while a file, or a piece of it, was read."""

    lines: int
    """Of the file, empty ones too."""

    count: int
    first: Sequence[tuple[int, str]]
    """The first few: number of the line, and what is odd about it."""

    same_ids: int = 0
    """Examples with the id of another."""


@dataclass(frozen=True)
class EncodedFile:
    """A file's examples, and what was noticed in them."""

    columns: ExampleColumns
    noticed: Noticed
    name: str
    """Of the state of it all: another, once anything has changed."""


def encode_file(
    path: Path,
    processor: TurnProcessor,
    images: Path | None = None,
    cache: Path | None = None,
    workers: int = 1,
    console: "Console | None" = None,
    not_before: float = 0.0,
) -> EncodedFile:
    """Encode a file, or map what was encoded before.

    Only one process at a time may do it for one cache, see `read_dataset`.

    Args:
        path: of a JSONL file.
        processor: of the model that will read it.
        images: folder that image paths start from; none: beside the file.
        cache: folder of what is kept; none: nothing is.
        workers: processes that encode.
        console: to show progress on.
        not_before: take nothing that was made earlier, in seconds since 1970.

    Raises:
        DataError: a line is no example, or changed meanwhile; it is named by its number.
        OSError: the cache cannot be written.
    """
    stamp = _stamp(path)
    encoder = _Encoder(path, images, processor)
    if cache is None:
        with _counting(console, path, stamp[0]) as count:
            made = list(_each(encoder, _cut(path), workers, count))
        return _finish_in_memory(made)
    place = _place(cache, path, stamp, images, processor)
    _drop_older(place, not_before)
    if found := _map_file(place):
        return found
    parts = place.with_name(f".{place.name}.pieces")
    spans = _cut(path)
    kept = replace(encoder, parts=parts)
    with _counting(console, path, stamp[0]) as count:
        for _ in _each(kept, spans, workers, count):
            pass
    if _stamp(path) != stamp:
        raise DataError(f"{path}: it changed while it was read; start again")
    pieces = _Pieces(kept, spans)
    with folder_written_whole(place) as beside, ColumnWriter(beside) as writer:
        identities = []
        for named in _joined(pieces):
            writer.append(named)
            identities.append(named["identities"])
        write_json(beside / NOTICED, vars(_add_up(pieces.noticed, identities)))
    rmtree(parts)
    found = _map_file(place)
    assert found
    return found


def _stamp(path: Path) -> list[int]:
    try:
        return stamp_of(path.stat())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a JSONL file of examples") from error


def _place(
    cache: Path, path: Path, stamp: list[int], images: Path | None, processor: TurnProcessor
) -> Path:
    """Name all that the encoded examples of a file hang on; forget what it was before."""
    where = _short(os.fsencode(path.resolve()))
    state = _short(json.dumps(stamp).encode())
    other = [str(images and images.resolve()), processor.words_fingerprint(), code_fingerprint()]
    for former in cache.glob(f"*{escape(path.stem)}-{where}-*"):
        if former.is_dir() and state not in former.name:
            rmtree(former, ignore_errors=True)  # who has it mapped keeps it
    return cache / f"{path.stem}-{where}-{state}-{_short(json.dumps(other).encode())}"


def _short(content: bytes) -> str:
    return blake2b(content, digest_size=6).hexdigest()


@cache
def code_fingerprint() -> str:
    """Name the code that encodes: nobody has to remember that what is kept is another's."""
    import tokenizers
    import transformers

    digest = blake2b(f"{transformers.__version__} {tokenizers.__version__}".encode())
    package = Path(foveal.__file__).parent
    for file in sorted([*package.glob("data/*.py"), *package.glob("models/**/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _drop_older(place: Path, time: float) -> None:
    for folder in (place, place.with_name(f".{place.name}.pieces")):
        if folder.exists() and folder.stat().st_mtime < time:
            rmtree(folder)


def _map_file(place: Path) -> EncodedFile | None:
    named = map_columns(place)
    if not named:
        return None
    try:
        noticed = json.loads((place / NOTICED).read_text(encoding="utf-8"))
        return EncodedFile(ExampleColumns.of_arrays(named), Noticed(**noticed), place.name)
    except (OSError, ValueError, KeyError, TypeError):
        return None


# -- pieces ---------------------------------------------------------------------------------------


Span = tuple[int, int]
"""Where a piece of a file starts and ends, in bytes; always behind a line break."""


def _cut(path: Path) -> list[Span]:
    size, cuts = path.stat().st_size, [0]
    with path.open("rb") as file:
        while cuts[-1] < size:
            file.seek(cuts[-1] + PIECE_BYTES)
            file.readline()
            cuts.append(min(file.tell(), size))
    return list(pairwise(cuts))


def _each(
    encoder: "_Encoder", spans: Sequence[Span], workers: int, count: Callable[[int], None]
) -> Iterator[Arrays]:
    """Encode pieces in order, in processes where there are many."""
    made = parallel(encoder, spans, workers if len(spans) >= FEWEST_PIECES else 0, 1)
    for (start, end), arrays in zip(spans, made, strict=True):
        count(end - start)
        yield arrays


@dataclass(frozen=True)
class _Encoder:
    """Encodes a piece of a file; a process that was started afresh takes it along."""

    path: Path
    images: Path | None
    processor: TurnProcessor
    parts: Path | None = None
    """Folder to keep pieces in; none: they are handed back."""

    def __call__(self, span: Span) -> Arrays:
        """Encode a piece, unless it is kept already."""
        if self.parts is None:
            return self._encode(span)
        if not self.file(span).exists():
            content = BytesIO()
            np.savez(content, **dict[str, Any](self._encode(span)))
            write_bytes(self.file(span), content.getvalue())
        return {}

    def file(self, span: Span) -> Path:
        """Name the file of a piece."""
        assert self.parts
        return self.parts / f"{span[0]}-{span[1]}.npz"

    def read(self, span: Span, *names: str) -> dict[str, Any]:
        """Read a piece that is kept; a broken one is made again."""
        try:
            return self._load(span, names)
        except (OSError, ValueError, KeyError, BadZipFile):
            self.file(span).unlink(missing_ok=True)
            self(span)
            return self._load(span, names)

    def _load(self, span: Span, names: Sequence[str]) -> dict[str, Any]:
        with self.file(span).open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in names or arrays}

    def _encode(self, span: Span) -> Arrays:
        start, end = span
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(end - start)
        builder, folder = ExamplesBuilder(), ImageFolder(self.path, self.images)
        number, count, first = 0, 0, list[tuple[int, str]]()
        for number, line in enumerate(BytesIO(content), start=1):
            if not holds_anything(line):
                continue
            one, messages = self._encode_line(folder, start, number, line)
            builder.add(one)
            count += len(messages)
            first += [(number, message) for message in messages[: SHOWN - len(first)]]
        about = json.dumps([number, count, first]).encode()
        return {**builder.build().arrays(), ABOUT: np.frombuffer(about, np.uint8)}

    def _encode_line(
        self, folder: ImageFolder, start: int, number: int, line: bytes
    ) -> tuple[Encoded, list[str]]:
        try:
            example = parse_example(line)
        except ValueError as error:  # only now does it matter how many lines stand before
            number += self._lines_before(start)
            raise DataError(f"{self.path}:{number}: {error}") from None
        try:
            return encode(example, self.processor, folder), list(look_at(example))
        except (DataError, ValueError) as error:
            number += self._lines_before(start)
            raise DataError(
                f"{self.path}:{number} ({example.id}): {error}; "
                f"`foveal check {self.path}` names every such line"
            ) from error

    def _lines_before(self, start: int) -> int:
        with self.path.open("rb") as file:
            blocks = iter(partial(file.read, PIECE_BYTES), b"")
            lines = position = 0
            for block in blocks:
                lines += block[: max(start - position, 0)].count(b"\n")
                position += len(block)
                if position >= start:
                    break
        return lines


class _Pieces:
    """The pieces of a file, read one at a time; notes what was noticed in each."""

    def __init__(self, encoder: _Encoder, spans: Sequence[Span]) -> None:
        self._encoder = encoder
        self._spans = spans
        self.noticed: list[Noticed] = []

    def names(self) -> list[Any]:
        """Name the paths of the images of each piece."""
        return [self._encoder.read(span, "path_names")["path_names"] for span in self._spans]

    def __iter__(self) -> Iterator[Arrays]:
        for span in self._spans:
            arrays = self._encoder.read(span)
            self.noticed.append(_noticed(arrays))
            yield arrays


def _noticed(arrays: Arrays) -> Noticed:
    return Noticed(*json.loads(arrays[ABOUT].tobytes()))


def _add_up(pieces: Sequence[Noticed], identities: Sequence[Any]) -> Noticed:
    """Put together what was noticed in the pieces of a file, lines counted on."""
    lines = count = 0
    first: list[tuple[int, str]] = []
    for one in pieces:
        first += [(lines + number, message) for number, message in one.first]
        lines, count = lines + one.lines, count + one.count
    ids = np.concatenate(identities) if identities else np.zeros(0, np.uint64)
    return Noticed(lines, count, first[:SHOWN], len(ids) - len(np.unique(ids)))


def _joined(pieces: Any) -> Iterator[Arrays]:
    """Lay pieces behind each other, their images numbered on."""
    names = [*pieces.names()]
    numbers, firsts = number_by_first(np.concatenate(names)) if names else ((), ())
    at = 0
    for arrays in pieces:
        table = ExampleColumns.of_arrays(arrays)
        end = at + len(table.paths)
        new = np.asarray(firsts)[np.searchsorted(firsts, at) : np.searchsorted(firsts, end)] - at
        own = np.asarray(numbers[at:end], np.int32)
        yield replace(
            table,
            images=Ragged(own[table.images.values], table.images.offsets),
            paths=Texts.of(table.paths[int(place)] for place in new),
            path_names=table.path_names[new],
        ).arrays()
        at = end


class _InMemory(list[Mapping[str, Any]]):
    """Pieces that are kept nowhere."""

    def names(self) -> list[Any]:
        """Name the paths of the images of each piece."""
        return [arrays["path_names"] for arrays in self]


def _finish_in_memory(made: Sequence[Arrays]) -> EncodedFile:
    columns = lay_end_to_end(_joined(_InMemory(made)))
    noticed = _add_up([_noticed(arrays) for arrays in made], [columns["identities"]])
    return EncodedFile(ExampleColumns.of_arrays(columns), noticed, "")


@contextmanager
def _counting(console: "Console | None", path: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Show how much of a file is encoded."""
    if console is None or size < PIECE_BYTES:
        yield lambda done: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("encoding {task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(path.name, total=size)
        yield lambda done: bar.update(task, advance=done)
