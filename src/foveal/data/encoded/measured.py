"""Encoded files + the sizes of their images -> what a plan needs to know, column by column."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import (
    Arrays,
    ColumnTable,
    Ragged,
    blocks,
    end_to_end,
    map_columns,
    number_by_first,
    sum_lists,
    write_columns,
)
from foveal.data.encoded.packed import ExampleColumns
from foveal.data.images.frames import parse_strip
from foveal.data.images.objects import called
from foveal.data.shapes import ImageShape, shape_of
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import DataError
from foveal.storage import folder_written_whole, write_text

FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class MeasuredExamples(ColumnTable):
    """What hangs on the sizes of images, of all files together."""

    tokens: NDArray[np.int32]
    families: NDArray[np.int32]
    extra_tokens: NDArray[np.int32]
    crops: NDArray[np.int32]
    later_crops: NDArray[np.int32]
    beginning_tokens: NDArray[np.int32]
    images: Ragged
    shape_numbers: NDArray[np.int32]
    image_tokens: NDArray[np.int32]
    image_crops: NDArray[np.int32]


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
        write_columns(folder, _pieces(files, numbers, shapes, each))
        made = MeasuredExamples.of_arrays(map_columns(folder) or {})
        write_text(folder / FINGERPRINT, _fingerprint(files, made))
    return measure_examples(files, numbers, shapes, each, place)


def _pieces(
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
        "families": _families(end_to_end([file.beginnings for file in files])),
        "shape_numbers": each,
        "image_tokens": image_tokens,
        "image_crops": image_crops,
    }


def _families(beginnings: NDArray[np.uint64]) -> NDArray[np.int32]:
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
    for array in sizes:
        for rows in blocks(len(array)):
            digest.update(array[rows].tobytes())
    return digest.hexdigest()
