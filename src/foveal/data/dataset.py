"""JSONL files + a processor -> Dataset: all that a plan and a batch need, no picture opened."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foveal.data.encode import Encoded, TurnProcessor, encode
from foveal.data.epochs import Shown
from foveal.data.example import ImageFolder, numbered_lines, parse_line
from foveal.data.lines import Examples
from foveal.data.media import image_sizes
from foveal.data.packed import (
    EncodedExamples,
    ImageFact,
    ImageFacts,
    RaggedBuilder,
    Texts,
    TextsBuilder,
)
from foveal.data.parallel import parallel
from foveal.data.remarks import Remarks, look_at
from foveal.data.shapes import ImageShape
from foveal.data.sizes import Sizes
from foveal.errors import DataError

__all__ = ["Dataset", "ImageFact", "build_dataset", "read_dataset"]

LINES_A_PROCESS = 8192
"""Lines that are handed to a process at once; fewer are encoded before one has started."""


@dataclass(frozen=True)
class Dataset:
    """Examples as tokens, the pictures they speak of, and what both cost."""

    examples: Sequence[Encoded]
    images: Sequence[ImageFact]
    sizes: Sizes
    fingerprint: str
    """Changes when an example, a picture's size or the encoding does."""

    remarks: Remarks = field(default_factory=Remarks)
    """What was noticed while reading."""

    def without_targets(self) -> list[int]:
        """List the examples in which nothing is learnt."""
        if isinstance(self.examples, EncodedExamples):
            silent: list[int] = self.examples.without_targets().tolist()
            return silent
        return [place for place, one in enumerate(self.examples) if not one.learnt.any()]

    def learnt_tokens(self) -> int:
        """Count the tokens that are learnt."""
        if isinstance(self.examples, EncodedExamples):
            return int(self.examples.learnt.sum())
        return sum(int(one.learnt.sum()) for one in self.examples)

    def image_numbers(self, example: int) -> list[int]:
        """Places in `images` of the pictures of an example."""
        numbers: list[int] = self.sizes.images.take([example])[0]
        return numbers


def read_dataset(
    paths: Path | Sequence[Path],
    processor: TurnProcessor,
    images: Path | None = None,
    cache: Path | None = None,
    workers: int = 1,
    weights: Sequence[float] = (),
) -> tuple[Examples, Dataset]:
    """Read and encode JSONL files, one behind the other.

    Args:
        paths: of the files.
        processor: of the model that will read them.
        images: folder that image paths start from; none: beside each file.
        cache: folder that remembers, from one run to the next, where lines start and how large
            pictures are.
        workers: processes that encode and read headers of pictures, where there are many.
        weights: how often an epoch shows each file; empty: once.

    Raises:
        DataError: a file or a picture's header cannot be read, or there is no example.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    examples = Examples(paths, cache)
    sizes_cache = cache / f"{paths[0].stem}-sizes.json" if cache else None
    remarks = Remarks()
    encoded = _encode_all(examples, processor, images, remarks, workers)
    counts = [len(file) for file in examples.files]
    shown = tuple(map(Shown, counts, weights or [1.0] * len(counts)))
    for path, one in zip(paths, shown, strict=True):
        if not one.an_epoch:
            raise DataError(
                f"{path}: weight {one.weight:g} of {one.examples} examples shows none of them"
            )
    weighted = shown if any(one.weight != 1 for one in shown) else ()
    dataset = build_dataset(encoded, processor, sizes_cache, workers, weighted)
    return examples, replace(dataset, remarks=remarks)


def _encode_all(
    examples: Examples,
    processor: TurnProcessor,
    images: Path | None,
    remarks: Remarks,
    workers: int,
) -> Iterator[Encoded]:
    for path in (file.path for file in examples.files):
        work = partial(_encode_line, path, ImageFolder(path, images), processor)
        identities = array("q")
        for read in parallel(work, numbered_lines(path), workers, LINES_A_PROCESS):
            identities.append(hash(read.encoded.id))
            for message in read.remarks:
                remarks.add(path, read.number, message)
            yield read.encoded
        again = len(identities) - len(np.unique(np.frombuffer(identities, np.int64)))
        if again:
            remarks.add(path, 0, f"examples with the id of another: {again:,}")


class _Read(NamedTuple):
    """What came out of one line."""

    number: int
    encoded: Encoded
    remarks: tuple[str, ...]


def _encode_line(
    path: Path, folder: ImageFolder, processor: TurnProcessor, numbered: tuple[int, bytes]
) -> _Read:
    number, line = numbered
    example = parse_line(path, number, line)
    try:
        return _Read(number, encode(example, processor, folder), tuple(look_at(example)))
    except (DataError, ValueError) as error:
        recipe = " --recipe RECIPE" if processor.boxes else ""  # it says what boxes count
        raise DataError(
            f"{path}:{number} ({example.id}): {error}; `foveal check {path}{recipe}` names every "
            "such line"
        ) from error


def build_dataset(
    encoded: Iterable[Encoded],
    processor: TurnProcessor,
    cache: Path | None = None,
    workers: int = 1,
    shown: tuple[Shown, ...] = (),
) -> Dataset:
    """Measure encoded examples; two paths to one file are one picture."""
    numbers: dict[Path, int] = {}
    ids = TextsBuilder()
    prompts, rest, owned = RaggedBuilder(), RaggedBuilder(), RaggedBuilder()
    learnt = bytearray()
    entries = array("i")
    digest = hashlib.blake2b(digest_size=16)
    for one in encoded:
        own = [numbers.setdefault(path, len(numbers)) for path in one.images]
        prompts.add(_name_images(one.entries[: one.prompt_entries], own))
        rest.add(one.entries[one.prompt_entries :].tolist())
        learnt += one.learnt[one.prompt_entries :].tobytes()
        owned.add(own)
        entries.append(len(one.entries))
        ids.add(one.id)
        digest.update(one.id.encode())
        digest.update(one.entries.tobytes())
    facts = _measure(list(numbers), processor, cache, workers)
    lists = owned.build()
    extra = np.concatenate([[0], np.cumsum(facts.tokens[lists.values] - 1)])[lists.offsets]
    sizes = Sizes(
        tokens=(np.frombuffer(entries, np.int32) + np.diff(extra)).astype(np.int32),
        prompts=prompts.build(),
        images=lists,
        image_tokens=facts.tokens,
        image_crops=facts.crops,
        shown=shown,
    )
    for values in (sizes.tokens, sizes.images.values, sizes.image_tokens, sizes.image_crops):
        digest.update(values.tobytes())
    examples = EncodedExamples(
        ids.build(),
        sizes.prompts,
        rest.build(),
        np.frombuffer(learnt, np.bool_),
        lists,
        facts,
    )
    return Dataset(examples, facts, sizes, digest.hexdigest())


def _measure(
    paths: Sequence[Path], processor: TurnProcessor, cache: Path | None, workers: int
) -> ImageFacts:
    sizes = image_sizes(paths, cache, workers)
    shapes: dict[ImageShape, int] = {}
    numbers: dict[tuple[int, int], int] = {}
    for path, size in zip(paths, sizes, strict=True):
        if size not in numbers:
            try:
                numbers[size] = shapes.setdefault(processor.shape(*size), len(shapes))
            except (DataError, ValueError) as error:  # it knows no name
                raise DataError(f"{path}: {error}") from error
    each = np.asarray([numbers[size] for size in sizes], np.int32)
    return ImageFacts(Texts.of(map(str, paths)), tuple(shapes), each)


def _name_images(prompt: np.ndarray, own: list[int]) -> list[int]:
    """Replace an example's own image numbers by those of the whole data set."""
    return [-1 - own[-1 - entry] if entry < 0 else entry for entry in prompt.tolist()]
