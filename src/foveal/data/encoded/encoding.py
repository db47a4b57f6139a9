"""A JSONL file + a processor -> its encoded examples: worked out once, mapped by every process.

Encoding is done in pieces, each written whole: a run that is killed meanwhile goes on behind the
last. What is kept is named by all that it hangs on, so that it can be out of date in no way.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from glob import escape
from hashlib import blake2b
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from shlex import quote
from shutil import rmtree
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from foveal.data.checking.texts import example_problems, example_warnings
from foveal.data.encode import Encoded, encode, encode_pairs, holds_boxes
from foveal.data.encoded.column_files import (
    Arrays,
    Ragged,
    Texts,
    map_columns,
    number_by_first,
    write_columns,
)
from foveal.data.encoded.packed import ExampleColumns, pack
from foveal.data.example import naming_unreadable
from foveal.data.images.archive_index import INDICES
from foveal.data.images.archives import state_of
from foveal.data.images.image_folder import ImageFolder
from foveal.data.lines import Examples
from foveal.data.parallel import counting, parallel
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import DataError
from foveal.storage import drop_older, folder_written_whole, locked, write_bytes, write_json

if TYPE_CHECKING:
    from rich.console import Console

ENCODED = "encoded"
"""Folder of a cache that keeps encoded examples."""

CHUNK_BYTES = 2**23
"""Bytes of a file that are encoded together: what a kill costs, and a process is handed."""

FEWEST_CHUNKS = 4
"""Pieces that are worth a second process: it needs seconds to start."""

SHOWN = 3
"""Remarks that are spelled out; the others are counted."""

NOTICED = "noticed.json"

ABOUT = "about"
"""Array of a piece that says, as JSON, what was noticed in it."""


@dataclass(frozen=True)
class Noticed:
    """What was noticed while a file, or a piece of it, was read."""

    count: int
    first: Sequence[tuple[int, str]]
    """The first few: number of the line, in a piece of the example, and what is odd about it."""

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
    images: Path | None,
    cache: Path,
    workers: int = 1,
    console: "Console | None" = None,
    not_before: float = 0.0,
    pairs: bool = False,
) -> EncodedFile:
    """Encode a file, or map what was encoded before; of several processes one does it.

    Args:
        path: of a JSONL file.
        processor: of the model that will read it.
        images: folder that image paths start from; none: beside the file.
        cache: folder of what is kept, here and of where lines start.
        workers: processes that encode.
        console: to show progress on.
        not_before: take nothing that was made earlier, in seconds since 1970.
        pairs: put answers beside those that are rejected for them.

    Raises:
        DataError: a line is no example, or changed meanwhile; it is named by its number.
        OSError: the cache cannot be written.
    """
    stamp, kept = _stamp(path), cache / ENCODED
    with locked(kept / f".{_name(path)}.lock"):
        place = _place(kept, path, stamp, images, processor, pairs)
        drop_older(kept.glob(f"*{escape(place.name)}*"), not_before)
        if known := _map_file(place):
            return known
        for torn in kept.glob(f".{escape(place.name)}.*.part"):  # by a kill
            rmtree(torn)
        parts = kept / f".{place.name}.pieces"
        encoder = ChunkEncoder(path, cache, images, processor, pairs, parts)
        examples = encoder.examples()
        spans = examples.files[0].cut(CHUNK_BYTES)
        shown_on = console if len(spans) > 1 else None
        with counting(shown_on, f"encoding {path.name}", len(examples)) as done:
            # In processes where there are many.
            made = parallel(encoder, spans, workers if len(spans) >= FEWEST_CHUNKS else 0, 1)
            for (_, end), _ in zip(spans, made, strict=True):
                done(end)
        noticed = [encoder.noticed(span) for span in spans]
        if _stamp(path) != stamp or not all(one.still_holds for one in noticed):
            rmtree(parts)
            raise DataError(f"{path}: it, or its images, changed while it was read; start again")
        with folder_written_whole(place) as beside:
            write_columns(beside, _joined(encoder, spans))
            identities = (map_columns(beside) or {})["identities"]
            write_json(beside / NOTICED, vars(_add_up(noticed, examples, identities)))
        rmtree(parts)
        found = _map_file(place)
        assert found
        return found


def _stamp(path: Path) -> list[int]:
    with naming_unreadable(path):
        return state_of(path)


def _place(
    cache: Path,
    path: Path,
    stamp: list[int],
    images: Path | None,
    processor: TurnProcessor,
    pairs: bool,
) -> Path:
    """Name all that the encoded examples of a file hang on; forget what it was before."""
    state = _short(json.dumps(stamp).encode())
    reads = processor.words_fingerprint(), processor.boxes, processor.frame_choice
    other = [str(images and images.resolve()), repr(reads), code_fingerprint(), pairs]
    for former in cache.glob(f"*{escape(_name(path))}-*"):
        if former.is_dir() and state not in former.name:
            rmtree(former, ignore_errors=True)  # who has it mapped keeps it
    return cache / f"{_name(path)}-{state}-{_short(json.dumps(other).encode())}"


def _name(path: Path) -> str:
    return f"{path.stem}-{_short(os.fsencode(path.resolve()))}"


def _short(content: bytes) -> str:
    return blake2b(content, digest_size=6).hexdigest()


@cache
def code_fingerprint() -> str:
    """Name the code that encodes: nobody has to remember that what is kept is another's."""
    libraries = [version(name) for name in ("transformers", "tokenizers", "numpy")]
    digest = blake2b(repr(libraries).encode())
    package = Path(__file__).parents[2]
    for file in sorted([*package.glob("data/**/*.py"), *package.glob("models/**/*.py")]):
        if not file.is_relative_to(package / "data" / "convert"):  # no run encodes through it
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _map_file(place: Path) -> EncodedFile | None:
    named = map_columns(place)
    if not named:
        return None
    try:
        noticed = Noticed(**json.loads((place / NOTICED).read_text(encoding="utf-8")))
        if not noticed.still_holds:
            rmtree(place)
            return None
        name = f"{place.name} {sorted(noticed.states.items())}"
        return EncodedFile(ExampleColumns.of_arrays(named), noticed, name)
    except (OSError, ValueError, KeyError, TypeError):
        return None


Span = tuple[int, int]
"""The first example of a piece, and the one behind its last."""


@dataclass(frozen=True)
class ChunkEncoder:
    """Encodes pieces of a file; a process that was started afresh takes it along."""

    path: Path
    cache: Path
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

    def examples(self) -> Examples:
        """Open the file."""
        return Examples([self.path], self.cache)

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
        folder = ImageFolder(self.path, self.images, self.parts.parent / INDICES)
        examples, noticed = self.examples(), list[tuple[int, str]]()
        # A file that was cut short meanwhile is refused when all is done.
        places = range(span[0], min(span[1], len(examples)))
        columns = pack(self._sets(examples, place, folder, noticed) for place in places)
        about = [len(noticed), noticed[:SHOWN], 0, folder.states]
        return {**columns.arrays(), ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}

    def _sets(
        self, examples: Examples, place: int, folder: ImageFolder, noticed: list[tuple[int, str]]
    ) -> list[list[Encoded]]:
        """Encode an example, and note what is odd about it."""
        example = examples[place]
        try:
            if self.pairs:
                sets = list(encode_pairs(example, self.processor, folder))
            else:
                sets = [[encode(example, self.processor, folder)]]
            if any(turn.videos for turn in example.turns) or (
                self.processor.boxes and holds_boxes(example)
            ):
                folder.note_states(sets[-1][0].images)
        except (DataError, ValueError) as error:
            _, number = examples.find(place)
            recipe = " --recipe RECIPE" if self.processor.boxes else ""  # it says what boxes count
            raise DataError(
                f"{self.path}:{number} ({example.id}): {error}; "
                f"`foveal check {quote(str(self.path))}{recipe}` names every such line"
            ) from error
        odd = *example_problems(example), *example_warnings(example)
        noticed += [(place, message) for message in odd]
        return sets


def _add_up(
    chunks: Sequence[Noticed], examples: Examples, identities: NDArray[np.uint64]
) -> Noticed:
    """Put together what was noticed in the pieces of a file, by the numbers of its lines."""
    first = [one for chunk in chunks for one in chunk.first][:SHOWN]
    return Noticed(
        count=sum(chunk.count for chunk in chunks),
        first=[(examples.find(place)[1], message) for place, message in first],
        same_ids=len(identities) - len(np.unique(identities)),
        states={path: state for chunk in chunks for path, state in chunk.states.items()},
    )


def _joined(encoder: ChunkEncoder, spans: Sequence[Span]) -> Iterator[Arrays]:
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
