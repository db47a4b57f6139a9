"""Pieces of a JSONL file + a processor -> encoded pieces, each a file -> the columns of it all."""

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
from numpy.typing import NDArray

from foveal.data.checking.texts import SHOWN, look_at
from foveal.data.encode import Encoded, encode, encode_pairs, holds_boxes
from foveal.data.encoded.column_files import Arrays, Ragged, Texts, number_by_first
from foveal.data.encoded.packed import ExampleColumns, pack
from foveal.data.example import holds_anything, parse_example
from foveal.data.images.archive_index import INDICES
from foveal.data.images.archives import state_of
from foveal.data.images.image_folder import ImageFolder
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
    pairs: bool
    """Whether answers are put beside those that are rejected for them."""

    parts: Path
    """Folder that keeps pieces."""

    def __call__(self, span: Span) -> None:
        """Encode a piece, unless it is kept already."""
        if not self.file(span).exists() or not self.noticed(span).still_holds:
            content = BytesIO()
            np.savez(content, **self._encode(span))
            write_bytes(self.file(span), content.getvalue())

    def file(self, span: Span) -> Path:
        """Name the file of a piece."""
        return self.parts / f"{span[0]}-{span[1]}.npz"

    def read(self, span: Span, *names: str) -> dict[str, Any]:
        """Read a piece that is kept; a broken one is made again."""
        try:
            return self._load(span, names)
        except (OSError, ValueError, KeyError, BadZipFile):
            self.file(span).unlink(missing_ok=True)
            self(span)
            return self._load(span, names)

    def noticed(self, span: Span) -> Noticed:
        """Read what was noticed in a piece."""
        return Noticed(*json.loads(self.read(span, ABOUT)[ABOUT].tobytes()))

    def _load(self, span: Span, names: Sequence[str]) -> dict[str, Any]:
        with self.file(span).open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in names or arrays}

    def _encode(self, span: Span) -> dict[str, Any]:
        start, end = span
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(end - start)
        folder = ImageFolder(self.path, self.images, self.parts.parent / INDICES)
        lines, noticed = BytesIO(content).readlines(), list[tuple[int, str]]()
        columns = pack(self._encode_lines(folder, start, lines, noticed))
        about = [len(lines), len(noticed), noticed[:SHOWN], 0, folder.states]
        return {**columns.arrays(), ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}

    def _encode_lines(
        self,
        folder: ImageFolder,
        start: int,
        lines: Sequence[bytes],
        noticed: list[tuple[int, str]],
    ) -> Iterator[list[list[Encoded]]]:
        """Encode the lines behind a place in the file, and note what is odd about each."""
        for number, line in enumerate(lines, start=1):
            if holds_anything(line):
                sets, messages = self._encode_line(folder, start, number, line)
                noticed += [(number, message) for message in messages]
                yield sets

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


def add_up_noticed(pieces: Sequence[Noticed], identities: NDArray[np.uint64]) -> Noticed:
    """Put together what was noticed in the pieces of a file, lines counted on."""
    lines = count = 0
    first: list[tuple[int, str]] = []
    for one in pieces:
        first += [(lines + number, message) for number, message in one.first]
        lines, count = lines + one.lines, count + one.count
    states = {path: state for one in pieces for path, state in one.states.items()}
    same_ids = len(identities) - len(np.unique(identities))
    return Noticed(lines, count, first[:SHOWN], same_ids, states)


def joined(encoder: PieceEncoder, spans: Sequence[Span]) -> Iterator[Arrays]:
    """Read kept pieces one after the other, their images numbered on."""
    names = [encoder.read(span, "path_names")["path_names"] for span in spans]
    numbers, firsts = number_by_first(np.concatenate([np.zeros((0, 2), np.uint64), *names]))
    at = 0
    for span in spans:
        table = ExampleColumns.of_arrays(encoder.read(span))
        end = at + len(table.paths)
        new = firsts[np.searchsorted(firsts, at) : np.searchsorted(firsts, end)] - at
        own = numbers[at:end]
        yield replace(
            table,
            images=Ragged(own[table.images.values], table.images.offsets),
            paths=Texts.of(table.paths[place] for place in new.tolist()),
            path_names=table.path_names[new],
        ).arrays()
        at = end
