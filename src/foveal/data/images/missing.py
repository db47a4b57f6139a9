"""A path that leads to no image -> what to do about it."""

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

MOST_NAMES = 100_000
"""Names of a folder that are looked through for one that is nearly the same."""


def where_else(roots: Sequence[Path], path: str) -> str:
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
