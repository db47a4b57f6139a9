"""Pieces of a JSONL file + a processor -> encoded pieces, kept in files or not -> the whole."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from foveal.data.checking.remarks import SHOWN, look_at
from foveal.data.encode import Encoded, encode, encode_pairs
from foveal.data.encoded.column_files import Arrays, Ragged, Texts, number_by_first
from foveal.data.encoded.packed import ExampleColumns, ExamplesBuilder
from foveal.data.example import holds_anything, parse_example
from foveal.data.images.archive_index import INDICES
from foveal.data.images.archives import state_of
from foveal.data.images.image_folder import ImageFolder
from foveal.data.read_turns import holds_boxes
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import DataError
from foveal.storage import write_bytes

PIECE_BYTES = 2**23
"""Bytes of a file that are encoded together: what a kill costs, and a process is handed."""

ABOUT = "about"
"""Array of a piece that says, as JSON, what was noticed in it."""


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

    states: Mapping[str, list[int]] = field(default_factory=dict)
    """Other files that entries hang on, and the states in which they were: archives, since paths
    say where in them images are; clips; images in which boxes lie."""

    @property
    def still_holds(self) -> bool:
        """Whether those files are what they were."""
        try:
            return all(state_of(path) == state for path, state in self.states.items())
        except OSError:
            return False


Span = tuple[int, int]
"""Where a piece of a file starts and ends, in bytes; always behind a line break."""


def cut_into_pieces(path: Path) -> list[Span]:
    """Cut a file into pieces of whole lines."""
    size, cuts = path.stat().st_size, [0]
    with path.open("rb") as file:
        while cuts[-1] < size:
            file.seek(cuts[-1] + PIECE_BYTES)
            file.readline()
            cuts.append(min(file.tell(), size))
    return list(pairwise(cuts))


@dataclass(frozen=True)
class PieceEncoder:
    """Encodes a piece of a file; a process that was started afresh takes it along."""

    path: Path
    images: Path | None
    processor: TurnProcessor
    pairs: bool = False
    """Whether answers are put beside those that are rejected for them."""

    parts: Path | None = None
    """Folder to keep pieces in; none: they are handed back."""

    def __call__(self, span: Span) -> Arrays:
        """Encode a piece, unless it is kept already."""
        if self.parts is None:
            return self._encode(span)
        if not self.file(span).exists() or not noticed_in(self.read(span, ABOUT)).still_holds:
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
        builder, folder = ExamplesBuilder(), self._folder()
        number, count, first = 0, 0, list[tuple[int, str]]()
        for number, line in enumerate(BytesIO(content), start=1):
            if not holds_anything(line):
                continue
            sets, messages = self._encode_line(folder, start, number, line)
            of_line = 0
            for answers in sets:
                for place, one in enumerate(answers):
                    builder.add(one, place == 0, of_line)
                    of_line += 1
            count += len(messages)
            first += [(number, message) for message in messages[: SHOWN - len(first)]]
        about = json.dumps([number, count, first, 0, folder.states]).encode()
        return {**builder.build().arrays(), ABOUT: np.frombuffer(about, np.uint8)}

    def _folder(self) -> ImageFolder:
        indices = self.parts and self.parts.parent / INDICES
        return ImageFolder(self.path, self.images, indices)

    def _encode_line(
        self, folder: ImageFolder, start: int, number: int, line: bytes
    ) -> tuple[list[list[Encoded]], list[str]]:
        try:
            example = parse_example(line)
        except ValueError as error:  # only now does it matter how many lines stand before
            number += self._lines_before(start)
            raise DataError(f"{self.path}:{number}: {error}") from None
        try:
            if self.pairs:
                sets = list(encode_pairs(example, self.processor, folder))
            else:
                sets = [[encode(example, self.processor, folder)]]
            if any(turn.videos for turn in example.turns) or (
                self.processor.boxes and holds_boxes(example)
            ):
                folder.note_states(sets[-1][0].images)
            return sets, list(look_at(example))
        except (DataError, ValueError) as error:
            number += self._lines_before(start)
            recipe = " --recipe RECIPE" if self.processor.boxes else ""  # it says what boxes count
            raise DataError(
                f"{self.path}:{number} ({example.id}): {error}; "
                f"`foveal check {self.path}{recipe}` names every such line"
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


class KeptPieces:
    """The pieces of a file, read one at a time."""

    def __init__(self, encoder: PieceEncoder, spans: Sequence[Span]) -> None:
        self._encoder = encoder
        self._spans = spans

    def noticed(self) -> list[Noticed]:
        """Say what was noticed in each piece."""
        return [noticed_in(self._encoder.read(span, ABOUT)) for span in self._spans]

    def names(self) -> list[Any]:
        """Name the paths of the images of each piece."""
        return [self._encoder.read(span, "path_names")["path_names"] for span in self._spans]

    def __iter__(self) -> Iterator[Arrays]:
        for span in self._spans:
            yield self._encoder.read(span)


def noticed_in(arrays: Arrays) -> Noticed:
    """Read what was noticed in a piece."""
    return Noticed(*json.loads(arrays[ABOUT].tobytes()))


def add_up_noticed(pieces: Sequence[Noticed], identities: Sequence[Any]) -> Noticed:
    """Put together what was noticed in the pieces of a file, lines counted on."""
    lines = count = 0
    first: list[tuple[int, str]] = []
    for one in pieces:
        first += [(lines + number, message) for number, message in one.first]
        lines, count = lines + one.lines, count + one.count
    ids = np.concatenate(identities) if identities else np.zeros(0, np.uint64)
    states = {path: state for one in pieces for path, state in one.states.items()}
    return Noticed(lines, count, first[:SHOWN], len(ids) - len(np.unique(ids)), states)


def joined(pieces: Any) -> Iterator[Arrays]:
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


class PiecesInMemory(list[Mapping[str, Any]]):
    """Pieces that are kept nowhere."""

    def names(self) -> list[Any]:
        """Name the paths of the images of each piece."""
        return [arrays["path_names"] for arrays in self]
