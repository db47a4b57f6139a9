"""Encoded examples and what is known of their images, as columns; an `Encoded` is a few slices."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.encode import Encoded
from foveal.data.encoded.column_files import (
    ColumnTable,
    EndToEnd,
    Listed,
    Ragged,
    Texts,
    digest_of,
    end_to_end,
    offsets_of,
)
from foveal.data.shapes import ImageShape

ALONE = bytes(16)
"""Stands for the beginning of a prompt without images, which is nobody else's."""


@dataclass(frozen=True)
class ExampleColumns(ColumnTable, Listed[Encoded]):
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

    def at(self, index: int) -> Encoded:
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


def pack(lines: Iterable[Iterable[Sequence[Encoded]]]) -> ExampleColumns:
    """Lay the examples of some lines end to end, without an object for each.

    Args:
        lines: of each, its sets of answers to one prompt; the examples of a line have one id.
    """
    ids, facts, images = list[str](), array("i"), array("i")
    numbers, names = dict[Path, int](), list[bytes]()
    entries, learnt, beginnings = bytearray(), bytearray(), bytearray()
    contents, identities = bytearray(), bytearray()
    for sets in lines:
        answers = [(one, place == 0) for answers in sets for place, one in enumerate(answers)]
        for of_line, (one, is_first) in enumerate(answers):
            for path in one.images:
                if path not in numbers:
                    numbers[path] = len(names)
                    names.append(_name(str(path)))
                images.append(numbers[path])
            shown = np.flatnonzero(one.entries[: one.prompt_entries] < 0)
            ids.append(one.id)
            entries += one.entries.tobytes()
            learnt += one.learnt.tobytes()
            beginnings += _beginning(one, shown, [names[numbers[path]] for path in one.images])
            contents += digest_of(one.entries.tobytes(), 1)
            identities += _name(f"{one.id}\0{of_line}" if of_line else one.id, 1)
            facts.extend((len(one.entries), len(one.images), one.prompt_entries, is_first))
            last = int(shown.max(initial=-1))
            facts.extend((int(np.count_nonzero(one.learnt)), len(shown), last + 1))
    columns = np.frombuffer(facts, np.int32).reshape(-1, 7).T
    of_entries, of_images, prompt_entries, begins_set, targets, prompt_images, begun = columns
    return ExampleColumns(
        ids=Texts.of(ids),
        entries=Ragged(np.frombuffer(entries, np.int32), offsets_of(of_entries)),
        learnt=np.frombuffer(learnt, np.bool_),
        prompt_entries=prompt_entries,
        begins_set=begins_set.astype(np.bool_),
        targets=targets,
        images=Ragged(np.frombuffer(images, np.int32), offsets_of(of_images)),
        prompt_images=prompt_images,
        beginning_entries=begun,
        beginnings=np.frombuffer(beginnings, np.uint64).reshape(-1, 2),
        contents=np.frombuffer(contents, np.uint64),
        identities=np.frombuffer(identities, np.uint64),
        paths=Texts.of(map(str, numbers)),
        path_names=np.frombuffer(b"".join(names), np.uint64).reshape(-1, 2),
    )


def _beginning(one: Encoded, shown: NDArray[np.int64], names: Sequence[bytes]) -> bytes:
    """Name what a prompt begins with, up to the last of the places where it shows an image."""
    if not len(shown):
        return ALONE
    begun = one.entries[: shown[-1] + 1].copy()
    images = [names[-1 - entry] for entry in begun[shown].tolist()]
    begun[shown] = -1  # who it is follows: an example's own number says nothing to others
    return digest_of(begun.tobytes() + b"".join(images))


def _name(text: str, words: int = 2) -> bytes:
    return digest_of(text.encode("utf-8", "surrogateescape"), words)


class EncodedExamples(EndToEnd[Encoded]):
    """The examples of all files, one file behind the other."""

    parts: Sequence[ExampleColumns]

    @property
    def targets(self) -> NDArray[np.int32]:
        """Tokens of each that are to be predicted, (examples,)."""
        return end_to_end([file.targets for file in self.parts])

    @property
    def begins_set(self) -> NDArray[np.bool_]:
        """Whether each is the first of the answers to its prompt, (examples,)."""
        return end_to_end([file.begins_set for file in self.parts])

    @property
    def contents(self) -> NDArray[np.uint64]:
        """Name the entries of each, (examples,)."""
        return end_to_end([file.contents for file in self.parts])


@dataclass(frozen=True)
class Prompts:
    """First turns' prompts: token ids, and -(1 + number in the data set) where an image stands."""

    examples: EncodedExamples
    images: Ragged

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, indices: Sequence[int]) -> list[list[int]]:
        """Read the prompts of some examples."""
        owned = self.images.take(indices)
        return [
            self._prompt(int(index), numbers) for index, numbers in zip(indices, owned, strict=True)
        ]

    def _prompt(self, index: int, numbers: list[int]) -> list[int]:
        place, within = self.examples.place(index)
        file = self.examples.parts[place]
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
