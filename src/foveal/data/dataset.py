"""JSONL files + a processor -> Dataset: all that a plan and a batch need, no image opened."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveal.data.checking.texts import Remarks
from foveal.data.encode import Encoded
from foveal.data.encoded.column_files import digest_of, number_by_first
from foveal.data.encoded.encoding import encode_file
from foveal.data.encoded.measured import measure_examples, shapes_of
from foveal.data.encoded.packed import (
    EncodedExamples,
    ExampleColumns,
    ExamplesBuilder,
    ImageFact,
    ImageFacts,
    PathsOfFiles,
    Prompts,
)
from foveal.data.encoded.piecewise import Noticed
from foveal.data.images.archive_index import forget_indices
from foveal.data.images.image_sizes import image_sizes
from foveal.data.lines import Examples
from foveal.data.row_planning.epochs import Shown
from foveal.data.row_planning.sizes import Beginnings, Sizes
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import DataError
from foveal.storage import FAILED_WRITES, drop_older, locked

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Dataset", "ImageFact", "build_dataset", "read_dataset"]

STATES_KEPT = 4
"""States of the same files, as with other images or another model, that a cache remembers."""


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
    pairs: bool = False,
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
        fresh: whether to take nothing from the cache that is older than this call.
        pairs: make a set of each turn's answer and its rejected ones, instead of learning every
            answer.

    Raises:
        DataError: a file or an image's header cannot be read, there is no example, or the cache
            cannot be written.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    called = time.time()  # what others have done since, while this waited, need not be done again
    if cache is None:
        return _read(paths, processor, images, None, workers, weights, console, 0.0, 0.0, pairs)
    # One process at a time for the same files; the system ends the turn of a dead one.
    name = digest_of("\n".join(str(path.resolve()) for path in paths).encode(), 1).hex()
    place = cache / "encoded" / name
    try:
        with locked(place.with_name(f".{name}.lock")):
            fresh_from = called if fresh else 0.0
            for torn in place.parent.glob(f".{name}-*.part"):  # by a kill
                rmtree(torn)
            for one in place.parent.glob(f"{name}-*"):
                drop_older(one, fresh_from)
            if fresh:
                forget_indices(place.parent, called)
            return _read(
                paths,
                processor,
                images,
                place,
                workers,
                weights,
                console,
                called,
                fresh_from,
                pairs,
            )
    except OSError as error:
        if error.errno not in FAILED_WRITES:
            raise
        raise DataError(
            f"cannot write to {error.filename or cache}: {error.strerror}; free space and run the "
            "same command again: it goes on from there"
        ) from error


def _read(
    paths: Sequence[Path],
    processor: TurnProcessor,
    images: Path | None,
    place: Path | None,
    workers: int,
    weights: Sequence[float],
    console: "Console | None",
    called: float,
    fresh_from: float,
    pairs: bool,
) -> tuple[Examples, Dataset]:
    """Read files, alone; what is kept stands beside `place`."""
    examples = Examples(paths, place and place.parent.parent, fresh_from)
    counts = [len(file) for file in examples.files]
    shown = tuple(map(Shown, counts, weights or [1.0] * len(counts)))
    for path, one in zip(paths, shown, strict=True):
        if not one.an_epoch:
            raise DataError(
                f"{path}: weight {one.weight:g} of {one.examples} examples shows none of them"
            )
    kept = place and place.parent
    encoded = [
        encode_file(path, processor, images, kept, workers, console, fresh_from, pairs)
        for path in paths
    ]
    remarks = Remarks()
    for path, file in zip(paths, encoded, strict=True):
        _add_remarks(remarks, path, file.noticed)
    files = [file.columns for file in encoded]
    state = digest_of("".join(file.name for file in encoded).encode(), 1).hex()
    numbered = _number_images(files)
    sizes = image_sizes(
        numbered.paths,
        place and place.with_name(f"{place.name}-sizes"),
        workers,
        numbered.names,
        max(called, fresh_from),
    )
    place = place and place.with_name(f"{place.name}-{state}")
    if pairs:
        shown = tuple(
            Shown(int(file.begins_set.sum()), one.weight)
            for file, one in zip(files, shown, strict=True)
        )
    weighted = shown if any(one.weight != 1 for one in shown) else ()
    dataset = _assemble(files, numbered, sizes, processor, place, weighted, remarks)
    if not pairs:
        return examples, dataset
    begins = np.concatenate([file.begins_set for file in files])
    sets = np.flatnonzero(np.append(begins, True))
    return examples, replace(dataset, sizes=replace(dataset.sizes, sets=sets))


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
    files = [builder.build()]
    numbered = _number_images(files)
    sizes = image_sizes(numbered.paths, None, workers, numbered.names)
    return _assemble(files, numbered, sizes, processor)


class _NumberedImages(NamedTuple):
    """The distinct images of all files."""

    paths: Sequence[str]
    names: NDArray[np.uint64]
    numbers: NDArray[np.int32] | None
    """Of the images of each file, one file behind the other; none: an only file's own."""


def _number_images(files: Sequence[ExampleColumns]) -> _NumberedImages:
    if len(files) == 1:
        return _NumberedImages(files[0].paths, files[0].path_names, None)
    names = np.concatenate([file.path_names for file in files])
    numbers, firsts = number_by_first(names)
    paths = PathsOfFiles([file.paths for file in files], firsts)
    return _NumberedImages(paths, names[firsts], numbers)


def _assemble(
    files: Sequence[ExampleColumns],
    numbered: _NumberedImages,
    sizes: NDArray[np.int32],
    processor: TurnProcessor,
    place: Path | None = None,
    shown: tuple[Shown, ...] = (),
    remarks: Remarks | None = None,
) -> Dataset:
    """Work out what hangs on the images' sizes, and put all together."""
    paths = numbered.paths
    shapes, each = shapes_of(sizes, paths, processor)
    if place:
        asked = repr(shapes).encode() + each.tobytes()
        place = place.with_name(f"{place.name}-{digest_of(asked, 1).hex()}")
        _forget_older(place)
    measured, fingerprint = measure_examples(files, numbered.numbers, shapes, each, place)
    examples = EncodedExamples(files)
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
    return Dataset(examples, facts, found, fingerprint, remarks or Remarks())


def _forget_older(place: Path) -> None:
    """Keep what was worked out for a few states of the same files; others who map it keep it."""
    first, *_ = place.name.split("-")
    others = [one for one in place.parent.glob(f"{first}-*-*") if one != place]
    others.sort(key=lambda one: one.stat().st_mtime)
    for old in others[: -STATES_KEPT + 1]:
        rmtree(old, ignore_errors=True)
