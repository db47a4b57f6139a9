"""A path of a JSONL file -> where it leads: to a file, into an archive, to an object of a store."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from foveal.data.images.archives import ENDINGS, containing_file, state_of
from foveal.data.images.frames import parse_frame
from foveal.data.images.objects import called, object_at, read_url
from foveal.errors import ConfigError, DataError

MOST_REMEMBERED_PATHS = 20_000
"""Images that are looked for once: most have several questions."""

MOST_NAMES = 100_000
"""Names of a folder that are looked through for one that is nearly the same."""


class ImageFolder:
    """Where the image paths of a JSONL file start from.

    By default the `images` folder beside the file, then the file's own folder; a path that
    leaves its folder is refused. A zip or tar file is a folder too.
    """

    def __init__(self, data: Path, images: Path | None = None, indices: Path | None = None) -> None:
        """Find the folders.

        Args:
            data: the file.
            images: folder that paths start from, in place of those.
            indices: folder that keeps where things are in archives.
        """
        roots = (images,) if images else (data.parent / "images", data.parent)
        self.roots = tuple(root.resolve() for root in roots)
        self._indices = indices
        self.states: dict[str, list[int]] = {}
        """Files that paths or entries hang on, as archives, and their states at that time."""
        self._found: dict[str, Path] = {}

    def find(self, path: str) -> Path:
        """Turn a path of an example into a file, or the name of a clip's frame into its own.

        Raises:
            DataError: the path leaves the folder, or there is no such file.
        """
        found = self._found.get(path)
        if found is None:
            frame = parse_frame(path)
            found = (
                Path(str(replace(frame, clip=str(self.find(frame.clip)))))
                if frame
                else self._look_for(path)
            )
            if len(self._found) < MOST_REMEMBERED_PATHS:
                self._found[path] = found
        return found

    def note_states(self, paths: Iterable[Path]) -> None:
        """Note the states of files whose content matters before they are opened."""
        for path in map(containing_file, paths):
            if str(path) not in self.states:
                self.states[str(path)] = state_of(path)

    def _look_for(self, path: str) -> Path:
        if "\0" in path:  # each Python has its own way to say so, and some say nothing
            raise DataError(f"image {path!r}: a null byte in its name; rename it")
        if path.startswith("data:"):
            raise DataError(f"image {path[:40]}: it is the image itself; write that into a file")
        for root in self.roots:
            stored = object_at(root)
            try:
                url = read_url(path, stored.cache if stored else root) if "://" in path else None
            except ConfigError as error:  # of this one line, not of the command
                raise DataError(f"image {error}") from None
            if url:
                if not stored or not url.path.is_relative_to(root):
                    raise DataError(
                        f"image {path} lies outside {called(root)}; name the store that images "
                        f"come from: data.images={url.scheme}://{url.key.partition('/')[0]}"
                    )
                path = str(url.path)
            try:
                candidate = Path(os.path.realpath(os.path.join(root, path)))
                is_file = bool(stored) or candidate.is_file()
            except OSError as error:  # too long
                raise DataError(f"image {path!r}: {error}; rename it") from None
            if not candidate.is_relative_to(root):
                raise DataError(f"image {path} lies outside {called(root)}; move it inside")
            if any(ending in path or ending in root.name for ending in ENDINGS) and (
                stored or not is_file
            ):
                from foveal.data.images.archive_index import find_member  # which needs numpy

                if member := find_member(candidate, self._indices, self.states):
                    self.note_states([member.path])
                    return member.path
            if is_file:
                return candidate
        roots = " or ".join(map(str, self.roots))
        raise DataError(f"image {path[:200]} is not in {roots}; {_where_else(self.roots, path)}")


def _where_else(roots: Sequence[Path], path: str) -> str:
    """Say what to do about a path that is in none of some folders.

    Other systems write names in capitals, accents in two signs, folders with backslashes; web
    addresses write signs as numbers.
    """
    if not path.strip():
        return "leave the empty path out"
    folder, _, name = path.replace("\\", "/").rpartition("/")
    for root in roots:
        if (root / path).is_dir():
            return "it is a folder; name an image in it"
        if (root / path).is_symlink():
            return "it is a link that leads nowhere; bring back what it leads to"
        for place in (folder, ""):
            found = _names_in(Path(os.path.realpath(root / place))).get(_as_compared(name))
            if found and (root / place).resolve().is_relative_to(root):
                return f"did you mean {os.path.join(place, found)}?"
    return "correct it, or name the folder that it starts from: --images, data.images"


@lru_cache(8)
def _names_in(folder: Path) -> dict[str, str]:
    try:
        with os.scandir(folder) as entries:
            return {_as_compared(one.name): one.name for one in islice(entries, MOST_NAMES)}
    except OSError:  # there is no such folder, or a store's
        return {}


def _as_compared(name: str) -> str:
    return normalize("NFC", unquote(name)).casefold().strip()
