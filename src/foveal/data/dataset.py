"""JSONL files + a processor -> Dataset: all that a plan and a batch need, no image opened."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from shlex import quote
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from foveal.config import Recipe
from foveal.data.convert.unpack import unpacked
from foveal.data.encode import Encoded
from foveal.data.encoded.column_files import (
    EndToEnd,
    Picked,
    digest_of,
    forget_others,
    number_by_first,
)
from foveal.data.encoded.encoding import ENCODED, SHOWN, Noticed, encode_file
from foveal.data.encoded.measured import image_sizes, measure_examples, shapes_of
from foveal.data.encoded.packed import (
    EncodedExamples,
    ExampleColumns,
    ImageFact,
    ImageFacts,
    Prompts,
    pack,
)
from foveal.data.images.archive_index import forget_indices
from foveal.data.images.objects import image_base
from foveal.data.lines import Examples
from foveal.data.row_planning.epochs import Shown
from foveal.data.row_planning.groups import Sizes
from foveal.data.turn_processor import TurnProcessor
from foveal.errors import DataError
from foveal.storage import FAILED_WRITES, disk_time, drop_older, locked

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Dataset", "ImageFact", "build_dataset", "read_dataset"]

STATES_KEPT = 4
"""States of the same files, as with other images or another model, that a cache remembers."""


@dataclass(frozen=True)
class Remarks:
    """Things that stop no run, but that nobody wants, file by file."""

    noticed: tuple[tuple[Path, Noticed], ...] = ()

    def lines(self) -> Iterator[str]:
        """Say them in a few lines."""
        told = [one for file, noticed in self.noticed for one in _told(file, noticed)]
        count = sum(noticed.count + bool(noticed.same_ids) for _, noticed in self.noticed)
        yield from told[:SHOWN]
        if count:
            more = f"and {count - SHOWN:,} more" if count > SHOWN else "that is all"
            files = dict.fromkeys(file for file, noticed in self.noticed if _told(file, noticed))
            names = " and ".join(f"`foveal check {quote(str(file))}`" for file in files)
            yield f"{more} of what was noticed while reading; {names} opens the pictures too"


def _told(file: Path, noticed: Noticed) -> list[str]:
    told = [f"{file}:{number}: {message}" for number, message in noticed.first]
    if noticed.same_ids:
        told.append(f"{file}: examples with the id of another: {noticed.same_ids:,}")
    return told


@dataclass(frozen=True)
class Dataset:
    """Examples as tokens, the images they speak of, and what both cost."""

    examples: EncodedExamples
    images: Sequence[ImageFact]
    sizes: Sizes
    fingerprint: str
    """Changes when an example, an image's size or the encoding does."""

    remarks: Remarks = Remarks()
    """What was noticed while reading."""

    def without_targets(self) -> list[int]:
        """List the examples in which nothing is learnt."""
        silent: list[int] = np.flatnonzero(self.examples.targets == 0).tolist()
        return silent

    def learnt_tokens(self) -> int:
        """Count the tokens that are learnt."""
        return int(self.examples.targets.sum(dtype=np.int64))

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
    if cache is None:
        with TemporaryDirectory(prefix="foveal-") as folder:  # what is mapped outlives its name
            examples, dataset = read_dataset(
                paths, processor, images, Path(folder), workers, weights, console, pairs=pairs
            )
        return examples, replace(dataset, sizes=replace(dataset.sizes, folder=None))
    paths = [paths] if isinstance(paths, Path) else paths
    with _alone_with(paths, cache, fresh) as (place, called):
        not_before = called if fresh else 0.0
        examples = Examples(paths, cache, not_before)
        counts = [len(file) for file in examples.files]
        shown = tuple(map(Shown, counts, weights or [1.0] * len(counts)))
        for path, one in zip(paths, shown, strict=True):
            if not one.an_epoch:
                raise DataError(
                    f"{path}: weight {one.weight:g} of {one.examples} examples shows none of them"
                )
        encoded = [
            encode_file(path, processor, images, cache, workers, console, not_before, pairs)
            for path in paths
        ]
        files = [file.columns for file in encoded]
        state = digest_of("".join(file.name for file in encoded).encode(), 1).hex()
        dataset = _measure(files, processor, place, state, workers, called)
    sizes = dataset.sizes
    if pairs:
        begins = dataset.examples.begins_set
        sizes = replace(sizes, sets=np.flatnonzero(np.append(begins, True)))
        counts = [int(file.begins_set.sum()) for file in files]
        shown = tuple(Shown(count, one.weight) for count, one in zip(counts, shown, strict=True))
    if any(one.weight != 1 for one in shown):
        sizes = replace(sizes, shown=shown)
    noticed = tuple((path, file.noticed) for path, file in zip(paths, encoded, strict=True))
    return examples, replace(dataset, sizes=sizes, remarks=Remarks(noticed))


@contextmanager
def _alone_with(paths: Sequence[Path], cache: Path, fresh: bool) -> Iterator[tuple[Path, float]]:
    """Be the one process that works on some files; the system ends the turn of a dead one.

    Yields:
        What names of what is kept begin with, and when this process asked for its turn: what others
        have done since then need not be done again.
    """
    name = digest_of("\n".join(str(path.resolve()) for path in paths).encode(), 1).hex()
    kept = cache / ENCODED
    try:
        called = disk_time(kept)
        with locked(kept / f".{name}.lock"):
            for torn in kept.glob(f".{name}[-.]*.part"):  # by a kill
                rmtree(torn)
            if fresh:
                drop_older(kept.glob(f"{name}[-.]*"), called)
                forget_indices(kept, called)
            yield kept / name, called
    except OSError as error:
        if error.errno not in FAILED_WRITES:
            raise
        raise DataError(
            f"cannot write to {error.filename or cache}: {error.strerror}; free space and run the "
            "same command again: it goes on from there"
        ) from error


def build_dataset(encoded: Iterable[Encoded], processor: TurnProcessor) -> Dataset:
    """Measure encoded examples; two paths to one file are one image."""
    files = [pack([[one]] for one in encoded)]
    with TemporaryDirectory(prefix="foveal-") as folder:
        dataset = _measure(files, processor, Path(folder) / "examples", "", 1, inf)
    return replace(dataset, sizes=replace(dataset.sizes, folder=None))


def _measure(
    files: Sequence[ExampleColumns],
    processor: TurnProcessor,
    place: Path,
    state: str,
    workers: int,
    since: float,
) -> Dataset:
    """Find the distinct images of all files, and work out what hangs on their sizes.

    Args:
        files: one behind the other.
        processor: of the model.
        place: what names of what is kept begin with.
        state: names what the files hold.
        workers: processes that read headers of images.
        since: when another process need not have looked at all images for this one to trust it.
    """
    numbers, names = None, files[0].path_names  # an only file's own
    paths: Sequence[str] = files[0].paths
    if len(files) > 1:
        names = np.concatenate([file.path_names for file in files])
        numbers, firsts = number_by_first(names)
        paths, names = Picked(EndToEnd([file.paths for file in files]), firsts), names[firsts]
    kept_sizes = place.with_name(f"{place.name}.sizes")
    sizes = image_sizes(paths, names, kept_sizes, workers, since)
    shapes, each = shapes_of(sizes, paths, processor)
    asked = digest_of(repr(shapes).encode() + each.tobytes(), 1).hex()
    place = place.with_name(f"{place.name}-{state}{asked}")
    forget_others(place, STATES_KEPT)
    measured, fingerprint = measure_examples(files, numbers, shapes, each, place)
    examples = EncodedExamples(files)
    prompts = Prompts(examples, measured.images)
    found = Sizes(**vars(measured), prompts=prompts, folder=place)
    return Dataset(examples, ImageFacts(paths, shapes, each), found, fingerprint)


def training_files(recipe: Recipe, folder: Path) -> list[Path]:
    """Name a recipe's training files as JSONL; what is of another kind is unpacked to a folder."""
    return [unpacked(file.path, folder, recipe.data.columns) for file in recipe.data.train_files]


def read_training_examples(
    recipe: Recipe, files: list[Path], processor: TurnProcessor
) -> tuple[Examples, Dataset]:
    """Read them as the recipe's run would, in this process alone."""
    data = recipe.data
    return read_dataset(
        files,
        processor,
        image_base(data),
        data.cache,
        data.workers,
        [file.weight for file in data.train_files],
        pairs=recipe.learns_pairs,
    )
