"""Encoded files -> the sizes of their images, and what a plan needs to know, column by column."""

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import (
    Arrays,
    Texts,
    blocks,
    end_to_end,
    map_columns,
    number_by_first,
    sum_lists,
    write_columns,
)
from foveal.data.encoded.packed import ExampleColumns
from foveal.data.images.archives import containing_file, object_around, state_of
from foveal.data.images.frames import parse_strip
from foveal.data.images.media import image_size
from foveal.data.images.objects import called, object_states
from foveal.data.parallel import parallel, side_by_side
from foveal.data.row_planning.groups import MeasuredExamples
from foveal.data.shapes import ImageShape
from foveal.data.turn_processor import TurnProcessor, shape_of
from foveal.errors import DataError
from foveal.storage import folder_written_whole, write_text

FINGERPRINT = "fingerprint"

LOOKED_AT = "looked-at"
"""As old as when somebody last saw that every file is the one that was measured."""

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
        since: `disk_time` before which another process has not looked, if this one trusts it.

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
    write_text(cache / LOOKED_AT, "")
    return sizes


def _looked_at(cache: Path, since: float) -> bool:
    try:
        return (cache / LOOKED_AT).stat().st_mtime > since
    except OSError:
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


def shapes_of(
    sizes: NDArray[np.int32], paths: Sequence[str], processor: TurnProcessor
) -> tuple[tuple[ImageShape, ...], NDArray[np.int32]]:
    """Find the shape of each image; distinct ones in the order in which they are met.

    Raises:
        DataError: an image has none; it is named.
    """
    packed = sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1]
    if processor.frame_choice.as_strip:  # of one size, and yet of other times
        kinds: dict[object, int] = {}
        shown = ((one and (one.count, one.seconds)) for one in map(parse_strip, paths))
        kind = np.fromiter((kinds.setdefault(one, len(kinds)) for one in shown), np.int64)
        packed = np.unique(packed, return_inverse=True)[1] * max(len(kinds), 1) + kind
    _, firsts, which = np.unique(packed, return_index=True, return_inverse=True)
    shapes: dict[ImageShape, int] = {}
    numbers = np.zeros(len(firsts), np.int32)
    for at in np.argsort(firsts).tolist():
        first = int(firsts[at])
        try:
            shape = shape_of(processor, paths[first], tuple(sizes[first].tolist()))
        except (DataError, ValueError) as error:  # it knows no name
            raise DataError(f"{called(paths[first])}: {error}") from error
        numbers[at] = shapes.setdefault(shape, len(shapes))
    return tuple(shapes), numbers[which]


def measure_examples(
    files: Sequence[ExampleColumns],
    numbers: NDArray[np.int32] | None,
    shapes: Sequence[ImageShape],
    each: NDArray[np.int32],
    place: Path,
) -> tuple[MeasuredExamples, str]:
    """Work out what hangs on the images' sizes, or map what was worked out before."""
    if known := map_columns(place):
        return MeasuredExamples.of_arrays(known), (place / FINGERPRINT).read_text(encoding="utf-8")
    with folder_written_whole(place) as folder:
        write_columns(folder, _chunks(files, numbers, shapes, each))
        made = MeasuredExamples.of_arrays(map_columns(folder) or {})
        write_text(folder / FINGERPRINT, _fingerprint(files, made))
    return measure_examples(files, numbers, shapes, each, place)


def _chunks(
    files: Sequence[ExampleColumns],
    numbers: NDArray[np.int32] | None,
    shapes: Sequence[ImageShape],
    each: NDArray[np.int32],
) -> Iterator[Arrays]:
    """Measure all examples, a block at a time, and then say what was measured of all."""
    image_tokens = np.asarray([shape.tokens for shape in shapes], np.int32)[each]
    image_crops = np.asarray([shape.crops for shape in shapes], np.int32)[each]
    nobody = np.zeros(0, np.int32)
    before = 0
    for file in files:
        own = nobody if numbers is None else numbers[before : before + len(file.paths)]
        before += len(file.paths)
        for rows in blocks(len(file)):
            offsets = file.images.offsets[rows.start : rows.stop + 1]
            owned = file.images.values[offsets[0] : offsets[-1]]
            owned = owned if numbers is None else own[owned]
            offsets = offsets - offsets[0]
            starts, ends = offsets[:-1], offsets[1:]
            of_prompt = starts + file.prompt_images[rows]
            extra = image_tokens[owned] - 1
            prompt_extra = sum_lists(extra, starts, of_prompt)
            crops = sum_lists(image_crops[owned], starts, of_prompt)
            entries = np.diff(file.entries.offsets[rows.start : rows.stop + 1]).astype(np.int32)
            yield {
                "tokens": entries + sum_lists(extra, starts, ends),
                "extra_tokens": prompt_extra,
                "crops": crops,
                "later_crops": sum_lists(image_crops[owned], starts, ends) - crops,
                "beginning_tokens": file.beginning_entries[rows] + prompt_extra,
                "images.values": owned,
                "images.offsets": offsets,
            }
    yield {
        "prefix_groups": _prefix_groups(end_to_end([file.beginnings for file in files])),
        "image_tokens": image_tokens,
        "image_crops": image_crops,
    }


def _prefix_groups(beginnings: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Number the examples by what their prompts begin with; one without images is alone."""
    names = beginnings.copy()
    alone = np.flatnonzero(~beginnings.any(axis=1))
    names[alone, 0] = alone
    return number_by_first(names)[0]


def _fingerprint(files: Sequence[ExampleColumns], measured: MeasuredExamples) -> str:
    digest = blake2b(digest_size=16)
    for file in files:
        for rows in blocks(len(file)):
            ids = file.ids.offsets[rows.start : rows.stop + 1]
            ends = file.entries.offsets[rows.start : rows.stop + 1]
            texts = file.ids.content[ids[0] : ids[-1]].tobytes()
            entries = file.entries.values[ends[0] : ends[-1]].tobytes()
            of_ids, of_entries = (ids - ids[0]).tolist(), (4 * (ends - ends[0])).tolist()
            for at in range(rows.stop - rows.start):
                digest.update(texts[of_ids[at] : of_ids[at + 1]])
                digest.update(entries[of_entries[at] : of_entries[at + 1]])
    sizes = measured.tokens, measured.images.values, measured.image_tokens, measured.image_crops
    for column in sizes:
        for rows in blocks(len(column)):
            digest.update(column[rows].tobytes())
    return digest.hexdigest()
