"""What a recipe names as its examples -> a JSONL file, with the images of Parquet rows beside it.

Rows of Parquet cannot be read one at a time: a page would cost its whole row group. So they are
read once, each distinct image is stored once under the name of its content, and a run then reads
them as it reads any others.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from foveal.config import Columns
from foveal.data.checking.recognise import refuse_other_files
from foveal.data.convert.draft import DraftImage, Options, ending_of
from foveal.data.convert.sources.source import SPLITS, name_states, split_of
from foveal.data.convert.sources.tables import (
    NamedRow,
    Row,
    count_rows,
    stream_parquet,
    stream_rows,
)
from foveal.data.convert.sources.values import UnfitError, text_of
from foveal.data.convert.table import drafts_of_row
from foveal.data.example import Example, parse_example, write_examples
from foveal.data.images.kept_bytes import write_state
from foveal.data.images.objects import (
    BLOCK_BYTES,
    object_state,
    open_remote,
    read_url,
)
from foveal.errors import DataError, UserError, one_line
from foveal.storage import write_bytes, written_whole

PUBLISHED_PAGES = "nielsr/docvqa_1200_examples"
"""Data set of the published recipe, whose questions get the recipe's words."""

HUB = "hf:"
"""First part of a path that names a data set on the hub; a path keeps one slash of its two."""


@dataclass(frozen=True)
class RowsToUnpack:
    """One split of a data set on the hub, or of Parquet files."""

    name: str
    """As a file's may be."""

    state: str
    """What else would be other rows; what was fetched from the hub once stays what it was."""

    stream: Callable[[], Iterator[Row]]
    folder: Path | None = None
    """Below which images may lie; none: the rows hold them themselves."""

    pages: bool = False
    """Whether they are DocVQA's, of the published recipe."""

    def find(self, path: str) -> bytes | None:
        """Read an image below the folder of the rows."""
        if self.folder is None:
            return None
        root = self.folder.resolve()
        file = (root / path).resolve()
        return file.read_bytes() if file.is_relative_to(root) and file.is_file() else None


def find_rows(path: Path) -> RowsToUnpack | None:
    """Recognise what has to be unpacked; a JSONL file need not be.

    Raises:
        DataError: a folder without Parquet files or with several splits, or a hub name that is
            none.
    """
    if path.parts[:1] == (HUB,):
        return _rows_on_hub(path)
    folder, colon, split = path.name.rpartition(":")
    if colon and not path.exists() and (path.parent / folder).is_dir():
        return _rows_of_folder(path.parent / folder, SPLITS.get(split, split))
    if path.is_dir():
        return _rows_of_folder(path, None)
    if path.suffix == ".parquet" and path.is_file():
        return _rows_of_files(path.stem, path, [path], path.parent)
    return None


def _rows_on_hub(path: Path) -> RowsToUnpack:
    """Read `hf://OWNER/NAME:SPLIT`, or `hf://OWNER/NAME/PART:SPLIT`."""
    place, colon, split = "/".join(path.parts[1:]).partition(":")  # a slice has its own
    names = place.split("/")
    if not colon or not split or len(names) not in (2, 3):
        raise DataError(
            f"{path}: write hf://OWNER/NAME:SPLIT, or hf://OWNER/NAME/PART:SPLIT; "
            "a split such as train, or a part of it such as train[:50]"
        )
    data_set, part = "/".join(names[:2]), names[2] if len(names) == 3 else None
    return RowsToUnpack(
        name="-".join([*names, re.sub(r"[^\w.]+", "-", split).strip("-")]),
        state=f"{data_set}/{part}:{split}",
        stream=lambda: stream_rows(f"{HUB}//{place}:{split}", data_set, part, split=split),
        pages=data_set == PUBLISHED_PAGES,
    )


def _rows_of_folder(folder: Path, split: str | None) -> RowsToUnpack:
    """Take the files of one split; a folder that holds several has to say which."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        inside = file.relative_to(folder)
        splits.setdefault(split_of(inside.stem, inside.parts[:-1]), []).append(file)
    if not splits:
        raise DataError(
            f"{folder}: a folder without Parquet files; give a JSONL file, or turn the folder into "
            "one: foveal convert --help"
        )
    if split is None and len(splits) > 1:
        ways = " or ".join(f"{folder}:{name}" for name in sorted(splits))
        raise DataError(f"{folder}: holds several splits; give one of them: {ways}")
    if split is not None and split not in splits:
        raise DataError(f"{folder}: no split {split} in it; there are {', '.join(sorted(splits))}")
    (files,) = splits.values() if split is None else (splits[split],)
    name = f"{folder.name}-{split}" if split else folder.stem
    return _rows_of_files(name, folder, files, folder)


def _rows_of_files(name: str, path: Path, files: Sequence[Path], folder: Path) -> RowsToUnpack:
    return RowsToUnpack(
        name,
        state=name_states(file.resolve() for file in files),
        stream=lambda: stream_parquet(str(path), count_rows([str(file) for file in files])),
        folder=folder,
    )


def unpacked(path: Path, cache: Path, columns: Columns | None = None) -> Path:
    """Find the JSONL file of what a recipe names; Parquet rows are unpacked into `cache` once.

    Rows are of our own layout (`id`, `source`, `conversations` with images as bytes), or have
    columns of images, questions and answers, or of messages.

    Args:
        path: as a recipe names it.
        cache: folder to unpack into.
        columns: which columns hold what; none: found by their usual names.

    Raises:
        DataError: it cannot be read, or a row of it is no example.
        UserError: the package `datasets` is not installed.
    """
    path = fetched_file(path, cache)
    rows = find_rows(path)
    if rows is None:
        refuse_other_files(path)
        return path
    columns = columns or Columns()
    named = "" if columns == Columns() else columns.model_dump_json(exclude_defaults=True)
    state = sha256((rows.state + named).encode()).hexdigest()[:12]
    folder = cache / f"{rows.name}-{state}"
    file = folder / f"{rows.name}.jsonl"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_examples(file, _examples(rows, folder / "images", columns))
    return file


def fetched_file(path: Path, cache: Path) -> Path:
    """Copy a file of a store into `cache`, where its URL is given; any other path stays.

    Raises:
        DataError: there is no such object, or it changed while it was copied.
        StoreError: it cannot be read.
    """
    one = None if path.parts[:1] == (HUB,) else read_url(path, cache.resolve() / "fetched")
    if one is None:
        return path
    try:
        state = object_state(one)
        digest = sha256(f"{one.url} {state}".encode()).hexdigest()[:12]
        place = cache / f"{path.stem}-{digest}" / path.name
        if not place.exists():
            with written_whole(place) as beside, open_remote(one, BLOCK_BYTES) as remote:
                with beside.open("wb") as file:
                    copyfileobj(remote, file, BLOCK_BYTES)
                if object_state(one) != state:
                    raise DataError(f"{one.url}: changed while it was read; start again")
    except FileNotFoundError as error:
        raise DataError(f"{one.url}: no such object; give a JSONL or Parquet file") from error
    write_state(one.cache, one.url, state)
    return place


def _examples(rows: RowsToUnpack, images: Path, columns: Columns) -> Iterator[Example]:
    options = Options(columns=columns)
    number = 0
    for number, row in enumerate(rows.stream(), start=1):
        where = f"{rows.name} row {number}"
        if _is_own(row):
            yield _own(row, images, where)
            continue
        try:
            named = NamedRow(where, row, "images")
            drafts = list(drafts_of_row(named, options, rows.find, rows.pages))
        except UnfitError as error:
            remedy = "" if ";" in str(error) else "; take it out"
            raise DataError(f"{where}: {error}{remedy}") from None
        for place, draft in enumerate(drafts):
            stored = {
                one.target: _store(one.source, images)
                for one in draft.media
                if isinstance(one, DraftImage) and isinstance(one.source, bytes)
            }
            turns = tuple(
                turn.model_copy(update={"images": tuple(stored[name] for name in turn.images)})
                for turn in draft.turns
            )
            identity = f"{number:010d}-{place}"
            yield Example(id=identity, source=rows.name, system=draft.system, conversations=turns)
    if not number:
        raise DataError(f"{rows.name}: no rows")


def _is_own(row: Mapping[str, Any]) -> bool:
    """Tell our own layout from others whose messages are called conversations too."""
    turns = row.get("conversations")
    return isinstance(turns, list) and any(isinstance(one, dict) and "user" in one for one in turns)


def _own(row: Mapping[str, Any], images: Path, where: str) -> Example:
    """Read a row of our own layout."""
    try:
        turns = []
        for turn in row["conversations"]:
            shown = turn.get("images") or ()
            turns.append(turn | {"images": [_store(one["bytes"], images) for one in shown]})
        known = {key: text_of(row.get(key), f"`{key}`") for key in ("id", "source", "system")}
        return parse_example(json.dumps({**known, "conversations": turns}))
    except UserError:
        raise
    except Exception as error:  # the columns may hold anything
        raise DataError(
            f"{where}: not an example ({one_line(error, 300)}); mend or drop it"
        ) from error


def _store(content: bytes | None, images: Path) -> str:
    """Store an image under the name of its content; returns its path below `images`."""
    if not content:
        raise ValueError("a picture without bytes")
    digest = sha256(content).hexdigest()
    name = f"{digest[:2]}/{digest}.{ending_of(content)}"
    if not (images / name).exists():
        write_bytes(images / name, content)
    return name
