"""JSONL files + a processor -> Dataset: all that a plan and a batch need, no image opened."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveal.data.columns import (
    Arrays,
    Columns,
    ColumnWriter,
    Ragged,
    beside,
    blocks,
    digest_of,
    lay_end_to_end,
    map_columns,
    number_by_first,
    sum_lists,
)
from foveal.data.encode import Encoded, TurnProcessor
from foveal.data.encoding import Noticed, encode_file
from foveal.data.epochs import Shown
from foveal.data.image_sizes import image_sizes
from foveal.data.lines import Examples
from foveal.data.packed import (
    EncodedExamples,
    ExampleColumns,
    ExamplesBuilder,
    ImageFact,
    ImageFacts,
    PathsOfFiles,
    Prompts,
)
from foveal.data.remarks import Remarks
from foveal.data.shapes import ImageShape
from foveal.data.sizes import Beginnings, Sizes
from foveal.errors import DataError
from foveal.storage import FAILED_WRITES, folder_written_whole, locked, write_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Dataset", "ImageFact", "build_dataset", "read_dataset"]

FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Dataset:
    """Examples as tokens, the images they speak of, and what both cost."""

    examples: Sequence[Encoded]
    images: Sequence[ImageFact]
    sizes: Sizes
    fingerprint: str
    """Changes when an example, an image's size or the encoding does."""

    remarks: Remarks = field(default_factory=Remarks)
    """What was noticed while reading."""

    @property
    def targets(self) -> NDArray[np.int32]:
        """Tokens of each example that are learnt, (examples,)."""
        if isinstance(self.examples, EncodedExamples):
            return self.examples.targets
        return np.asarray([np.count_nonzero(one.learnt) for one in self.examples], np.int32)

    def without_targets(self) -> list[int]:
        """List the examples in which nothing is learnt."""
        silent: list[int] = np.flatnonzero(self.targets == 0).tolist()
        return silent

    def learnt_tokens(self) -> int:
        """Count the tokens that are learnt."""
        return int(self.targets.sum(dtype=np.int64))

    def image_numbers(self, example: int) -> list[int]:
        """Places in `images` of the images of an example."""
        numbers: list[int] = self.sizes.images.take([example])[0]
        return numbers


def read_dataset(
    paths: Path | Sequence[Path],
    processor: TurnProcessor,
    images: Path | None = None,
    cache: Path | None = None,
    workers: int = 1,
    weights: Sequence[float] = (),
    console: "Console | None" = None,
    fresh: bool = False,
) -> tuple[Examples, Dataset]:
    """Read and encode JSONL files, one behind the other.

    Of the processes that share a cache one works, and the others map what it made.

    Args:
        paths: of the files.
        processor: of the model that will read them.
        images: folder that image paths start from; none: beside each file.
        cache: folder that keeps encoded examples, where lines start and how large images are;
            none: all is worked out here and now.
        workers: processes that encode and read headers of images, where there are many.
        weights: how often an epoch shows each file; empty: once.
        console: to show progress on.
        fresh: whether to take nothing from the cache that is older than this process.

    Raises:
        DataError: a file or an image's header cannot be read, there is no example, or the cache
            cannot be written.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    with _in_turn(cache, paths):
        examples = Examples(paths, cache)
        counts = [len(file) for file in examples.files]
        shown = tuple(map(Shown, counts, weights or [1.0] * len(counts)))
        for path, one in zip(paths, shown, strict=True):
            if not one.an_epoch:
                raise DataError(
                    f"{path}: weight {one.weight:g} of {one.examples} examples shows none of them"
                )
        kept = cache / "encoded" if cache else None
        encoded = [
            encode_file(path, processor, images, kept, workers, console, fresh) for path in paths
        ]
        remarks = Remarks()
        for path, file in zip(paths, encoded, strict=True):
            _add_remarks(remarks, path, file.noticed)
        weighted = shown if any(one.weight != 1 for one in shown) else ()
        dataset = _assemble(
            [file.columns for file in encoded],
            processor,
            kept / digest_of("".join(file.name for file in encoded).encode()).hex()
            if kept
            else None,
            workers,
            weighted,
            remarks,
        )
    return examples, dataset


@contextmanager
def _in_turn(cache: Path | None, paths: Sequence[Path]) -> Iterator[None]:
    """Have one process at a time read files into a cache; the system ends the turn of a dead one.

    Raises:
        DataError: the cache cannot be written.
    """
    if cache is None:
        yield
        return
    name = digest_of("\n".join(str(path.resolve()) for path in paths).encode(), 1).hex()
    try:
        with locked(cache / f".{name}.lock"):
            yield
    except OSError as error:
        if error.errno not in FAILED_WRITES:
            raise
        raise DataError(
            f"cannot write to {error.filename or cache}: {error.strerror}; free space and run the "
            "same command again: it goes on from there"
        ) from error


def _add_remarks(remarks: Remarks, path: Path, noticed: Noticed) -> None:
    for number, message in noticed.first:
        remarks.add(path, number, message)
    remarks.count += noticed.count - len(noticed.first)
    if noticed.same_ids:
        remarks.add(path, 0, f"examples with the id of another: {noticed.same_ids:,}")


def build_dataset(
    encoded: Iterable[Encoded], processor: TurnProcessor, workers: int = 1
) -> Dataset:
    """Measure encoded examples; two paths to one file are one image."""
    builder = ExamplesBuilder()
    for one in encoded:
        builder.add(one)
    return _assemble([builder.build()], processor, None, workers, (), Remarks())


# -- files of examples -> one data set ---------------------------------------------------------------


@dataclass(frozen=True)
class _Measured(Columns):
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


def _assemble(
    files: Sequence[ExampleColumns],
    processor: TurnProcessor,
    cache: Path | None,
    workers: int,
    shown: tuple[Shown, ...],
    remarks: Remarks,
) -> Dataset:
    """Number the images of all files, measure them, and what hangs on them."""
    examples = EncodedExamples(files)
    names = beside([file.path_names for file in files])
    paths: Sequence[str] = files[0].paths
    numbers = None  # of an only file: its own
    if len(files) > 1:
        numbers, firsts = number_by_first(names)
        names, paths = names[firsts], PathsOfFiles([file.paths for file in files], firsts)
    sizes = image_sizes(paths, cache and cache.with_name(f"{cache.name}-sizes"), workers, names)
    shapes, each = _shapes_of(sizes, paths, processor)
    place = None
    if cache:
        asked = [repr(shapes).encode(), np.ascontiguousarray(each).data.cast("B")]
        state = digest_of(b"".join(map(bytes, asked)), 1).hex()
        place = cache.with_name(f"{cache.name}-{state}")
    measured, fingerprint = _measured(files, numbers, shapes, each, place)
    beginnings = Beginnings(
        measured.families,
        measured.extra_tokens,
        measured.crops,
        measured.later_crops,
        measured.beginning_tokens,
    )
    found = Sizes(
        measured.tokens,
        Prompts(examples, measured.images),
        measured.images,
        measured.image_tokens,
        measured.image_crops,
        shown,
        beginnings,
        place,
    )
    facts = ImageFacts(paths, shapes, measured.shape_numbers)
    return Dataset(examples, facts, found, fingerprint, remarks)


def _shapes_of(
    sizes: NDArray[np.int32], paths: Sequence[str], processor: TurnProcessor
) -> tuple[tuple[ImageShape, ...], NDArray[np.int32]]:
    """Find the shape of each image; distinct ones in the order in which they are met.

    Raises:
        DataError: an image has none; it is named.
    """
    packed = sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1]
    _, firsts, which = np.unique(packed, return_index=True, return_inverse=True)
    shapes: dict[ImageShape, int] = {}
    numbers = np.zeros(len(firsts), np.int32)
    for at in np.argsort(firsts).tolist():
        first = int(firsts[at])
        try:
            shape = processor.shape(*sizes[first].tolist())
        except (DataError, ValueError) as error:  # it knows no name
            raise DataError(f"{paths[first]}: {error}") from error
        numbers[at] = shapes.setdefault(shape, len(shapes))
    return tuple(shapes), numbers[which]


def _measured(
    files: Sequence[ExampleColumns],
    numbers: NDArray[np.int32] | None,
    shapes: Sequence[ImageShape],
    each: NDArray[np.int32],
    place: Path | None,
) -> tuple[_Measured, str]:
    """Work out what hangs on the images' sizes, or map what was worked out before."""
    known = map_columns(place) if place else None
    if place and known:
        return _Measured.of_arrays(known), (place / FINGERPRINT).read_text(encoding="utf-8")
    pieces = _pieces(files, numbers, shapes, each)
    if place is None:
        made = _Measured.of_arrays(lay_end_to_end(pieces))
        return made, _fingerprint(files, made)
    with folder_written_whole(place) as folder:
        with ColumnWriter(folder) as writer:
            for named in pieces:
                writer.append(named)
        made = _Measured.of_arrays(map_columns(folder) or {})
        write_text(folder / FINGERPRINT, _fingerprint(files, made))
    return _measured(files, numbers, shapes, each, place)


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
        "families": _families(beside([file.beginnings for file in files])),
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


def _fingerprint(files: Sequence[ExampleColumns], measured: _Measured) -> str:
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
            digest.update(np.ascontiguousarray(array[rows]))
    return digest.hexdigest()
