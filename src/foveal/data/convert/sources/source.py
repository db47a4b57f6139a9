"""A folder, a zip, or a folder of zips -> one list of entries, found by name and read."""

import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

from foveal.data.convert.sources.values import UnfitError
from foveal.errors import DataError
from foveal.storage import RepeatedKeyError, unique_keys

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
"""Word in the name of a file or folder -> split."""

ROWS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
"""Endings of files that may be converted by themselves."""

MAX_BYTES = 4 * 2**30
"""Most bytes of one file of a zip; a zip may hold a few bytes that unpack to thousands of GB."""


@dataclass(frozen=True)
class Entry:
    """One file of a source, in a folder or in a zip; nothing is ever unpacked by its name."""

    name: str
    """Path inside the source, with slashes."""

    file: Path
    """The file itself, or the zip that holds it."""

    member: str | None = None
    """Name inside the zip."""

    def __str__(self) -> str:
        return f"{self.file}" if self.member is None else f"{self.file}:{self.member}"

    @property
    def stem(self) -> str:
        """Name without folders and ending."""
        return self.last_name.rpartition(".")[0] or self.last_name

    @property
    def suffix(self) -> str:
        """Ending in small letters, as in `.png`."""
        name, dot, ending = self.last_name.rpartition(".")
        return (dot + ending).lower() if name else ""

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the folders above it, outermost first."""
        return tuple(self.name.split("/")[:-1])

    @property
    def last_name(self) -> str:
        """Name without folders."""
        return self.name.rpartition("/")[2]

    @property
    def split(self) -> str:
        """Split that its name speaks of, else its folders' names; none does: train."""
        return split_of(self.stem, self.folders)

    def read(self) -> bytes:
        """Read the whole content.

        Raises:
            DataError: it cannot be read, is too large or sits in a broken zip.
        """
        try:
            if self.member is None:
                return self.file.read_bytes()
            archive = _open_zip(self.file)
            if archive.getinfo(self.member).file_size > MAX_BYTES:
                raise DataError(f"{self}: more than {MAX_BYTES} bytes; take it out of the zip")
            return archive.read(self.member)
        except OSError as error:
            raise DataError(f"{self}: {error.strerror}") from error
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError) as error:
            raise DataError(f"{self}: cannot be unzipped ({error}); unpack it yourself") from error

    def read_text(self) -> str:
        """Read the whole content as UTF-8.

        Raises:
            DataError: as `read`, or it is no UTF-8.
        """
        try:
            return self.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self}: not UTF-8 ({error.reason}); save it as UTF-8") from error

    def read_json(self) -> Any:
        """Read the whole content as one JSON value.

        Raises:
            DataError: as `read_text`, or it is no JSON.
        """
        return _parse_json(self.read_text(), str(self))

    def read_lines(self) -> Iterator[dict[str, Any]]:
        """Read one JSON object a line.

        Raises:
            DataError: as `read_text`, or a line is something else (named by its number).
        """
        for number, line in enumerate(self.read_text().split("\n"), start=1):
            if line.strip():
                value = _parse_json(line, where := f"{self}:{number}")
                if not isinstance(value, dict):
                    raise DataError(f"{where}: not a JSON object")
                yield value


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RepeatedKeyError as error:
        raise DataError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None


def split_of(stem: str, folders: Sequence[str] = ()) -> str:
    """Find the split that a file's name speaks of, else the nearest folder's; none does: train.

    `train-00000-of-00002` and `llava_val` name theirs, `latest` does not.
    """
    for name in (stem, *reversed(folders)):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return "train"


@lru_cache(maxsize=8)  # one list of members a process, not one an image
def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: broken zip ({error}); fetch it again") from error


class Source:
    """All files below a folder, the content of zips among them; or one zip, or one file of rows."""

    def __init__(self, path: Path) -> None:
        """List the files.

        Raises:
            DataError: there is no such folder, zip or file, or nothing in it.
        """
        self.links_out: list[str] = []
        """Links that lead out of the folder, or to a folder, which are not followed."""
        if path.is_dir():
            entries = list(_walk(path, self.links_out))
        elif zipfile.is_zipfile(path):
            entries = list(_members(path))
        elif path.suffix.lower() in ROWS and path.is_file():
            entries = [Entry(path.name, path)]
        else:
            raise DataError(f"{path}: give a folder, a zip, or a file of rows ({', '.join(ROWS)})")
        if not entries:
            raise DataError(f"{path}: nothing in it")
        self.path = path
        self.entries = tuple(sorted(entries, key=lambda entry: entry.name))

    @cached_property
    def _by_last_name(self) -> dict[str, list[Entry]]:
        index: dict[str, list[Entry]] = {}
        # What one file of rows names lies beside it.
        is_rows = self.path.suffix.lower() in ROWS and self.path.is_file()
        for entry in _walk(self.path.parent, []) if is_rows else self.entries:
            index.setdefault(entry.last_name, []).append(entry)
        return index

    @cached_property
    def _by_id(self) -> dict[str, list[Entry]]:
        index: dict[str, list[Entry]] = {}
        for entry in (one for same in self._by_last_name.values() for one in same):
            if entry.suffix not in (*ROWS, ".txt", ".xml"):
                of_coco = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", entry.stem)
                for name in {entry.stem, str(int(of_coco[1])) if of_coco else entry.stem}:
                    index.setdefault(name, []).append(entry)
        return index

    def find(self, name: str) -> Entry | None:
        """Find the file whose path ends most like `name`; none where two do so equally well.

        People unpack one folder more or less than an annotation expects. A name without an ending
        is an image's id: its file's name before the ending, or the number in COCO's.
        """
        wanted = name.replace("\\", "/").split("/")[::-1]
        candidates = self._by_last_name.get(wanted[0], [])
        if not candidates and "." not in wanted[0]:
            candidates = self._by_id.get(wanted[0], [])
        exact = [one for one in candidates if name in (one.name, str(one.file.absolute()))]
        candidates = exact or candidates
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def shared(entry: Entry) -> int:
            pairs = zip(wanted, entry.name.split("/")[::-1], strict=False)
            return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

        best = max(map(shared, candidates))
        ties = [entry for entry in candidates if shared(entry) == best]
        return ties[0] if len(ties) == 1 else None

    def need(self, name: str, what: str = "picture") -> Entry:
        """Find a file as `find` does.

        Raises:
            UnfitError: there is none.
        """
        if (entry := self.find(name)) is None:
            raise UnfitError(f"no {what} of that name")
        return entry

    def match(self, pattern: str) -> list[Entry]:
        """List files whose path ends like `pattern`, as in `nlvr_pairs/*.json`."""
        *folders, last = pattern.split("/")
        return [
            entry
            for entry in self.entries
            if fnmatchcase(entry.last_name, last)
            and (not folders or entry.folders[-len(folders) :] == tuple(folders))
        ]

    def fingerprint(self) -> str:
        """Name the state of the source."""
        return name_states(sorted({entry.file for entry in self.entries}))


def name_states(files: Iterable[Path]) -> str:
    """Name the state of some files: others, or files changed since, give another name."""
    digest = sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _walk(folder: Path, links_out: list[str]) -> Iterator[Entry]:
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        links_out += [str(link) for name in folders if (link := Path(parent, name)).is_symlink()]
        for name in files:
            file = Path(parent, name)
            if name.startswith("."):
                continue
            if name != os.fsencode(name).decode("utf-8", "replace"):
                shown = os.fsencode(file).decode("utf-8", "backslashreplace")
                raise DataError(f"{shown}: a name that is not UTF-8; rename it")
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                links_out.append(str(file))
            elif file.suffix.lower() == ".zip":
                yield from _members(file)
            else:
                yield Entry(file.relative_to(folder).as_posix(), file)


def _members(path: Path) -> Iterator[Entry]:
    for info in _open_zip(path).infolist():
        # Some zips made on Windows hold its slashes.
        parts = [part for part in info.filename.replace("\\", "/").split("/") if part]
        if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts):
            yield Entry("/".join(parts), path, info.filename)
