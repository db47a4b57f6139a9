"""Paths of images -> their sizes, read from headers, remembered while the files stay the same."""

import time
from array import array
from collections.abc import Sequence
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import Arrays, Texts, map_columns, write_columns
from foveal.data.images.archives import containing_file, object_around, state_of
from foveal.data.images.media import image_size
from foveal.data.images.objects import called, object_states, side_by_side
from foveal.data.parallel import parallel
from foveal.errors import DataError
from foveal.storage import folder_written_whole, write_text

LOOKED_AT = "looked-at"
"""Names when somebody last saw that every file is the one that was measured."""

HEADERS_AT_ONCE = 1024
"""Headers that a process is handed to read."""


def image_sizes(
    paths: Sequence[str],
    names: NDArray[np.uint64],
    cache: Path,
    workers: int = 1,
    since: float = inf,
) -> NDArray[np.int32]:
    """Read (width, height) of many images, in processes, remembered from one run to the next.

    Every file is looked at: bytes, time of change, when that was set, and which file it is. Content
    that changed under all four is not noticed here, but when it is opened, where its shape differs.

    Args:
        paths: of images.
        names: (images, 2), `digest_of` each path.
        cache: folder that remembers sizes; a broken one is made anew.
        workers: processes; 0 or 1: none beside this one.
        since: when another process need not have looked before, for this one to trust it.

    Returns:
        (images, 2), width and height of the upright images.

    Raises:
        DataError: an image cannot be used; the first of them is named.
    """
    known = map_columns(cache) or {}
    is_same_list = "holders" in known and np.array_equal(known["names"], names)
    if is_same_list and _looked_at(cache, since):
        return known["sizes"]
    if is_same_list:
        holders, held = known["holders"], Texts(known["held.content"], known["held.offsets"])
    else:
        holders, held = _held_in(paths)
    stamps = _stamps(paths, holders, held)
    sizes = np.zeros((len(paths), 2), np.int32)
    places = np.flatnonzero(_take_known(known, names, stamps, sizes))
    unmeasured = (Path(paths[at]) for at in places.tolist())
    if len(places) and object_around(paths[places[0]]):
        found = side_by_side(image_size, unmeasured)
    else:
        found = parallel(image_size, unmeasured, workers, HEADERS_AT_ONCE)
    for at, size in zip(places.tolist(), found, strict=True):
        sizes[at] = size
    if len(places) or not known or len(known["names"]) != len(names):
        with folder_written_whole(cache) as beside:
            columns: Arrays = {
                "names": names,
                "sizes": sizes,
                "stamps": stamps,
                "holders": holders,
                "held.content": held.content,
                "held.offsets": held.offsets,
            }
            write_columns(beside, [columns])
    write_text(cache / LOOKED_AT, repr(time.time()))
    return sizes


def _looked_at(cache: Path, since: float) -> bool:
    try:
        return float((cache / LOOKED_AT).read_text(encoding="utf-8")) > since
    except (OSError, ValueError):
        return False


def _take_known(
    known: dict[str, NDArray[np.int64]],
    names: NDArray[np.uint64],
    stamps: NDArray[np.int64],
    sizes: NDArray[np.int32],
) -> NDArray[np.bool_]:
    """Fill in the sizes of files that are still the same; returns which are left."""
    if not known or not len(known["names"]) or not len(names):
        return np.ones(len(names), np.bool_)
    if np.array_equal(known["names"], names):
        at = np.arange(len(names))
    else:
        order = np.argsort(known["names"][:, 0], kind="stable")
        found = np.searchsorted(known["names"][order, 0], names[:, 0])
        at = order[np.minimum(found, len(order) - 1)]
    same = (known["names"][at] == names).all(axis=1) & (known["stamps"][at] == stamps).all(axis=1)
    sizes[same] = known["sizes"][at[same]]
    left: NDArray[np.bool_] = ~same
    return left


def _held_in(paths: Sequence[str]) -> tuple[NDArray[np.int32], Texts]:
    """Find the archives and clips that images lie in: a million images lie in a few archives.

    Returns:
        In which of them each image lies, (images,), below 0: in a file of its own; and their paths.
    """
    numbers: dict[str, int] = {}
    holders = array("i")
    for path in paths:
        holder = str(containing_file(path)) if "#" in path else ""
        holders.append(numbers.setdefault(holder, len(numbers)) if holder else -1)
    return np.frombuffer(holders, np.int32), Texts.of(numbers)


def _stamps(paths: Sequence[str], holders: NDArray[np.int32], held: Texts) -> NDArray[np.int64]:
    """Look at every file once, (images, 4)."""
    stamps = np.empty((len(paths), 4), np.int64)
    inside = holders >= 0
    stamps[inside] = _states(held)[holders[inside]]
    alone = np.flatnonzero(~inside).tolist()
    stamps[alone] = _states(paths if len(alone) == len(paths) else [paths[at] for at in alone])
    return stamps


def _states(paths: Sequence[str]) -> NDArray[np.int64]:
    states = array("q")
    try:
        known = object_states(one for one in map(object_around, paths) if one)
        for path in paths:
            one = object_around(path)
            states.extend(known[one] if one else state_of(path))
    except OSError as error:
        raise DataError(f"{called(error.filename)}: {error.strerror}") from error
    return np.frombuffer(states, np.int64).reshape(-1, 4)
