"""What a recipe names as its examples -> a JSONL file, with the pictures of Parquet rows beside it.

Rows of Parquet cannot be read one at a time: a page would cost its whole row group. So they are
read once, each distinct picture is stored once under the name of its content, and a run then reads
them as it reads any others.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from foveal.data.convert.columns import drafts_of_row, ending_of, explain, stream_rows
from foveal.data.convert.draft import LeftOut, Options, Picture
from foveal.data.convert.write import write_bytes
from foveal.data.example import Example, parse_example, write_examples
from foveal.errors import DataError, UserError

HUB = "hf:"
"""First part of a path that names a data set on the hub; a path keeps one slash of its two."""


class Rows(Protocol):
    """A set of rows that is not opened yet."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def fingerprint(self) -> str:
        """Name its state: another, once it has changed."""
        ...

    def open(self) -> Iterator[Mapping[str, Any]]:
        """Stream its rows, pictures as bytes."""
        ...


@dataclass(frozen=True)
class HubRows:
    """One split of a data set on the hub."""

    owner_and_name: str
    part: str | None
    split: str

    @classmethod
    def parse(cls, path: Path) -> "HubRows":
        """Read `hf://OWNER/NAME:SPLIT`, or `hf://OWNER/NAME/PART:SPLIT`.

        Raises:
            DataError: it is written otherwise.
        """
        place, colon, split = "/".join(path.parts[1:]).rpartition(":")
        names = place.split("/")
        if not colon or not split or len(names) not in (2, 3):
            raise DataError(f"{path}: write hf://OWNER/NAME:SPLIT, or hf://OWNER/NAME/PART:SPLIT")
        return cls("/".join(names[:2]), names[2] if len(names) == 3 else None, split)

    @property
    def name(self) -> str:
        """Written with dashes, as a file's name may be."""
        return "-".join([*self.owner_and_name.split("/"), *filter(None, [self.part]), self.split])

    def fingerprint(self) -> str:
        """Name it; what was fetched once stays what it was."""
        return f"{self.owner_and_name}/{self.part}:{self.split}"

    def open(self) -> Iterator[Mapping[str, Any]]:
        """Stream its rows."""
        return stream_rows(self.name, self.owner_and_name, self.part, split=self.split)


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file, or all those of a folder in the order of their names."""

    path: Path
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """As the file."""
        return self.path.stem

    def fingerprint(self) -> str:
        """Name the state of the files."""
        digest = sha256()
        for file in self.files:
            status = file.stat()
            digest.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def open(self) -> Iterator[Mapping[str, Any]]:
        """Stream their rows."""
        files = [str(file) for file in self.files]
        return stream_rows(str(self.path), "parquet", None, split="train", data_files=files)


def find_rows(path: Path) -> Rows | None:
    """Recognise what has to be unpacked; a JSONL file need not be.

    Raises:
        DataError: a folder without Parquet files, or a hub name that is none.
    """
    if path.parts[:1] == (HUB,):
        return HubRows.parse(path)
    if path.is_dir():
        files = tuple(sorted(path.rglob("*.parquet")))
        if not files:
            raise DataError(f"{path}: a folder without Parquet files; give a JSONL file")
        return ParquetRows(path, files)
    if path.suffix == ".parquet" and path.is_file():
        return ParquetRows(path, (path,))
    return None


def unpacked(path: Path, cache: Path) -> Path:
    """Find the JSONL file of what a recipe names; Parquet rows are unpacked into `cache` once.

    Rows are of our own layout (`id`, `source`, `conversations` with pictures as bytes), or of a
    layout on the hub that `foveal convert` knows.

    Raises:
        DataError: it cannot be read, or a row of it is no example.
        UserError: the package `datasets` is not installed.
    """
    rows = find_rows(path)
    if rows is None:
        return path
    state = sha256(rows.fingerprint().encode()).hexdigest()[:12]
    folder = cache / f"{rows.name}-{state}"
    file = folder / f"{rows.name}.jsonl"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_examples(file, _examples(rows, folder / "images"))
    return file


def _examples(rows: Rows, images: Path) -> Iterator[Example]:
    number = 0
    for number, row in enumerate(rows.open(), start=1):
        where = f"{rows.name} row {number}"
        if row.get("conversations"):
            yield _own(row, images, where)
            continue
        for place, draft in enumerate(drafts_of_row(row, "images", where, Options())):
            if isinstance(draft, LeftOut):
                raise DataError(f"{where}: {draft.reason}; take it out")
            named = {one.target: one for one in draft.media if isinstance(one, Picture)}
            targets = {
                name: _store(one.source, images)
                for name, one in named.items()
                if isinstance(one.source, bytes)
            }
            turns = tuple(
                turn.model_copy(update={"images": tuple(targets[name] for name in turn.images)})
                for turn in draft.turns
            )
            yield Example(id=f"{number:010d}-{place}", source=rows.name, conversations=turns)
    if not number:
        raise DataError(f"{rows.name}: no rows")


def _own(row: Mapping[str, Any], images: Path, where: str) -> Example:
    """Read a row of our own layout; what is null in a column was left out."""
    try:
        turns = []
        for turn in row["conversations"]:
            kept = {key: value for key, value in turn.items() if value is not None}
            kept["images"] = [_store(one["bytes"], images) for one in kept.get("images", ())]
            turns.append(kept)
        known = {key: row[key] for key in ("id", "source") if row.get(key) is not None}
        return parse_example(json.dumps({**known, "conversations": turns}))
    except UserError:
        raise
    except Exception as error:  # the columns may hold anything
        raise DataError(f"{where}: not an example ({explain(error)}); mend or drop it") from error


def _store(content: bytes | None, images: Path) -> str:
    """Store a picture under the name of its content; returns its path below `images`."""
    if not content:
        raise ValueError("a picture without bytes")
    digest = sha256(content).hexdigest()
    name = f"{digest[:2]}/{digest}.{ending_of(content)}"
    if not (images / name).exists():
        write_bytes(images / name, content)
    return name
