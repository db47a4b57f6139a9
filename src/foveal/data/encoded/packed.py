"""Encoded examples and what is known of their images, as columns; an `Encoded` is a few slices."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.encode import Encoded
from foveal.data.encoded.column_files import ColumnTable, Ragged, Texts, digest_of, end_to_end
from foveal.data.listed import Listed, place_within
from foveal.data.shapes import ImageShape

ALONE = bytes(16)
"""Stands for the beginning of a prompt without images, which is nobody else's."""


@dataclass(frozen=True)
class ExampleColumns(ColumnTable):
    """The examples of a file, or of a piece of one. A new fact of each is one more field."""

    ids: Texts

    entries: Ragged
    """Token ids; image k of the example stands as -(k + 1)."""

    learnt: NDArray[np.bool_]
    """Of each entry, whether it is to be predicted."""

    prompt_entries: NDArray[np.int32]
    """(examples,) Entries of the first turn's prompt."""

    begins_set: NDArray[np.bool_]
    """(examples,) Whether it is the first of the answers to its prompt, or the only one."""

    targets: NDArray[np.int32]
    """(examples,) How many of its entries are to be predicted."""

    images: Ragged
    """Of all turns, as numbers in `paths`; those of the first turn come first."""

    prompt_images: NDArray[np.int32]
    """(examples,) How many images the first prompt shows."""

    beginning_entries: NDArray[np.int32]
    """(examples,) Entries of the first prompt up to its last image."""

    beginnings: NDArray[np.uint64]
    """(examples, 2) Names what the first prompt begins with, up to its last image."""

    contents: NDArray[np.uint64]
    """(examples,) Names the entries: equal ones are worth comparing."""

    identities: NDArray[np.uint64]
    """(examples,) Names the id; of several examples of a line, each another."""

    paths: Texts
    """Of each distinct image, in the order in which they are met."""

    path_names: NDArray[np.uint64]
    """(images, 2) Names each path."""

    def __len__(self) -> int:
        return len(self.prompt_entries)

    def example(self, index: int) -> Encoded:
        """Read an example."""
        start, end = self.entries.offsets[index : index + 2].tolist()
        (images,) = self.images.take([index])
        return Encoded(
            id=self.ids[index],
            entries=self.entries.values[start:end],
            learnt=self.learnt[start:end],
            prompt_entries=int(self.prompt_entries[index]),
            images=tuple(Path(self.paths[number]) for number in images),
        )


class ExamplesBuilder:
    """Grows `ExampleColumns`, without an object for each example."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._numbers: dict[Path, int] = {}
        self._names: list[bytes] = []
        self._entries, self._learnt = bytearray(), bytearray()
        self._images, self._image_ends = array("i"), array("q", [0])
        self._ends, self._counts = array("q", [0]), [array("i") for _ in range(4)]
        self._beginnings, self._contents, self._identities = bytearray(), bytearray(), bytearray()
        self._begins_set = array("b")

    def add(self, one: Encoded, begins_set: bool = True, of_line: int = 0) -> None:
        """Lay one more example behind the others.

        Args:
            one: as tokens.
            begins_set: whether it is the first of the answers to its prompt.
            of_line: number among the examples of its line, which have one id.
        """
        own = [self._number(path) for path in one.images]
        entries = one.entries.tobytes()
        shown = np.flatnonzero(one.entries[: one.prompt_entries] < 0)
        beginning = ALONE
        if len(shown):
            begun = one.entries[: shown[-1] + 1].copy()
            images = [own[-1 - entry] for entry in begun[shown].tolist()]
            begun[shown] = -1  # who it is follows: an example's own number says nothing to others
            beginning = digest_of(begun.tobytes() + b"".join([self._names[k] for k in images]))
        self._ids.append(one.id)
        self._entries += entries
        self._learnt += one.learnt.tobytes()
        self._ends.append(len(self._learnt))
        self._images.extend(own)
        self._image_ends.append(len(self._images))
        targets, last = int(np.count_nonzero(one.learnt)), int(shown.max(initial=-1))
        facts = (one.prompt_entries, targets, len(shown), last + 1)
        for counts, fact in zip(self._counts, facts, strict=True):
            counts.append(fact)
        self._beginnings += beginning
        self._contents += digest_of(entries, 1)
        self._begins_set.append(begins_set)
        name = f"{one.id}\0{of_line}" if of_line else one.id
        self._identities += digest_of(name.encode("utf-8", "surrogateescape"), 1)

    def _number(self, path: Path) -> int:
        number = self._numbers.setdefault(path, len(self._numbers))
        if number == len(self._names):
            self._names.append(digest_of(str(path).encode("utf-8", "surrogateescape")))
        return number

    def build(self) -> ExampleColumns:
        """Hand the examples over; nothing may be added any more."""
        prompt_entries, targets, prompt_images, beginning_entries = (
            np.frombuffer(counts, np.int32) for counts in self._counts
        )
        return ExampleColumns(
            ids=Texts.of(self._ids),
            entries=Ragged(
                np.frombuffer(self._entries, np.int32), np.frombuffer(self._ends, np.int64)
            ),
            learnt=np.frombuffer(self._learnt, np.bool_),
            prompt_entries=prompt_entries,
            begins_set=np.frombuffer(self._begins_set, np.bool_),
            targets=targets,
            images=Ragged(
                np.frombuffer(self._images, np.int32), np.frombuffer(self._image_ends, np.int64)
            ),
            prompt_images=prompt_images,
            beginning_entries=beginning_entries,
            beginnings=np.frombuffer(self._beginnings, np.uint64).reshape(-1, 2),
            contents=np.frombuffer(self._contents, np.uint64),
            identities=np.frombuffer(self._identities, np.uint64),
            paths=Texts.of(map(str, self._numbers)),
            path_names=np.frombuffer(b"".join(self._names), np.uint64).reshape(-1, 2),
        )


class EncodedExamples(Listed[Encoded]):
    """The examples of all files, one file behind the other."""

    def __init__(self, files: Sequence[ExampleColumns]) -> None:
        self.files = files
        self._ends = list(accumulate(map(len, files)))

    def place(self, index: int) -> tuple[int, int]:
        """Say which file an example is of, and its place there."""
        return place_within(self._ends, index)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Encoded]:
        return (file.example(index) for file in self.files for index in range(len(file)))

    def at(self, index: int) -> Encoded:
        """Read an example."""
        file, within = self.place(index)
        return self.files[file].example(within)

    @property
    def targets(self) -> NDArray[np.int32]:
        """Tokens of each that are to be predicted, (examples,)."""
        return end_to_end([file.targets for file in self.files])

    @property
    def begins_set(self) -> NDArray[np.bool_]:
        """Whether each is the first of the answers to its prompt, (examples,)."""
        return end_to_end([file.begins_set for file in self.files])

    @property
    def contents(self) -> NDArray[np.uint64]:
        """Name the entries of each, (examples,)."""
        return end_to_end([file.contents for file in self.files])


class Prompts:
    """First turns' prompts: token ids, and -(1 + number in the data set) where an image stands."""

    def __init__(self, examples: EncodedExamples, images: Ragged) -> None:
        self._examples = examples
        self._images = images

    def __len__(self) -> int:
        return len(self._examples)

    def take(self, indices: Sequence[int]) -> list[list[int]]:
        """Read the prompts of some examples."""
        owned = self._images.take(indices)
        return [
            self._prompt(int(index), numbers) for index, numbers in zip(indices, owned, strict=True)
        ]

    def _prompt(self, index: int, numbers: list[int]) -> list[int]:
        place, within = self._examples.place(index)
        file = self._examples.files[place]
        start = int(file.entries.offsets[within])
        entries = file.entries.values[start : start + int(file.prompt_entries[within])].tolist()
        return [-1 - numbers[-1 - entry] if entry < 0 else entry for entry in entries]


@dataclass(frozen=True)
class ImageFact:
    """One distinct image, known from its header alone."""

    path: Path
    shape: ImageShape


@dataclass(frozen=True)
class ImageFacts(Listed[ImageFact]):
    """What is known of every distinct image."""

    paths: Sequence[str]

    shapes: tuple[ImageShape, ...]
    """Those that occur."""

    numbers: NDArray[np.int32]
    """(images,) Which of the shapes each has."""

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, index: int) -> ImageFact:
        """Read a fact."""
        return ImageFact(Path(self.paths[index]), self.shapes[self.numbers[index]])


class PathsOfFiles(Listed[str]):
    """Paths of the distinct images of several files."""

    def __init__(self, files: Sequence[Texts], firsts: NDArray[np.int64]) -> None:
        """Find them.

        Args:
            files: paths of each file.
            firsts: of each distinct image, where it is among the paths of all files.
        """
        self._files = files
        self._firsts = firsts
        self._ends = list(accumulate(map(len, files)))

    def __len__(self) -> int:
        return len(self._firsts)

    def at(self, index: int) -> str:
        """Read a path."""
        file, within = place_within(self._ends, int(self._firsts[index]))
        return self._files[file].at(within)
