"""A folder, a zip, or a folder of zips -> one list of entries, found by name and read."""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

from foveal.errors import DataError

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


@lru_cache(maxsize=8)  # one list of members a process, not one a picture
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

    def find(self, name: str) -> Entry | None:
        """Find the file whose path ends most like `name`; none where two do so equally well.

        People unpack one folder more or less than an annotation expects.
        """
        wanted = name.replace("\\", "/").split("/")[::-1]
        candidates = self._by_last_name.get(wanted[0], [])
        exact = [one for one in candidates if name in (one.name, str(one.file.absolute()))]
        candidates = exact or candidates
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def shared(entry: Entry) -> int:
            parts = entry.name.split("/")[::-1]
            pairs = zip(wanted, parts, strict=False)
            return next(
                (k for k, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(parts))
            )

        best = max(map(shared, candidates))
        ties = [entry for entry in candidates if shared(entry) == best]
        return ties[0] if len(ties) == 1 else None

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
        """Name the state of the source: other files, or files changed since, give another."""
        digest = sha256()
        for file in sorted({entry.file for entry in self.entries}):
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
