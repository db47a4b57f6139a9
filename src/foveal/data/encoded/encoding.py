"""A JSONL file + a processor -> its encoded examples: worked out once, mapped by every process.

Encoding is done in pieces, each written whole: a run that is killed meanwhile goes on behind the
last. What is kept is named by all that it hangs on, so that it can be out of date in no way.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from glob import escape
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from foveal.data.encoded.column_files import map_columns, write_columns
from foveal.data.encoded.packed import ExampleColumns
from foveal.data.encoded.piecewise import (
    PIECE_BYTES,
    Noticed,
    PieceEncoder,
    add_up_noticed,
    cut_into_pieces,
    joined,
)
from foveal.data.images.archives import state_of
from foveal.data.parallel import parallel
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import DataError
from foveal.storage import drop_older, folder_written_whole, locked, write_json

if TYPE_CHECKING:
    from rich.console import Console

FEWEST_PIECES = 4
"""Pieces that are worth a second process: it needs seconds to start."""

NOTICED = "noticed.json"


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
        cache: folder of what is kept.
        workers: processes that encode.
        console: to show progress on.
        not_before: take nothing that was made earlier, in seconds since 1970.
        pairs: put answers beside those that are rejected for them.

    Raises:
        DataError: a line is no example, or changed meanwhile; it is named by its number.
        OSError: the cache cannot be written.
    """
    stamp = _stamp(path)
    with locked(cache / f".{_name(path)}.lock"):
        place = _place(cache, path, stamp, images, processor, pairs)
        for one in cache.glob(f"*{escape(place.name)}*"):
            drop_older(one, not_before)
        if known := _map_file(place):
            return known
        for torn in cache.glob(f".{escape(place.name)}.*.part"):  # by a kill
            rmtree(torn)
        parts = cache / f".{place.name}.pieces"
        encoder, spans = PieceEncoder(path, images, processor, pairs, parts), cut_into_pieces(path)
        with _counting(console, path, stamp[0]) as count:
            # In processes where there are many.
            made = parallel(encoder, spans, workers if len(spans) >= FEWEST_PIECES else 0, 1)
            for (start, end), _ in zip(spans, made, strict=True):
                count(end - start)
        noticed = [encoder.noticed(span) for span in spans]
        if _stamp(path) != stamp or not all(one.still_holds for one in noticed):
            rmtree(parts)
            raise DataError(f"{path}: it, or its images, changed while it was read; start again")
        with folder_written_whole(place) as beside:
            write_columns(beside, joined(encoder, spans))
            identities = (map_columns(beside) or {})["identities"]
            write_json(beside / NOTICED, vars(add_up_noticed(noticed, identities)))
        rmtree(parts)
        found = _map_file(place)
        assert found
        return found


def _stamp(path: Path) -> list[int]:
    try:
        return state_of(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a JSONL file of examples") from error


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
