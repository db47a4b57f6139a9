"""Encoded examples and picture facts, end to end in a few arrays: a million of them are no objects.

Processes that open pictures are forked from the run: they read the arrays where they are, where
objects would be copied page by page as their reference counts change.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from foveal.data.encode import Encoded
from foveal.data.shapes import ImageShape
from foveal.data.sizes import Ragged


@dataclass(frozen=True)
class ImageFact:
    """One distinct picture, known from its header alone."""

    path: Path
    shape: ImageShape


@dataclass(frozen=True)
class Texts(Sequence[str]):
    """Many short texts, end to end."""

    content: bytes
    offsets: NDArray[np.int64]
    """(texts + 1,) Where each text starts, and where the last one ends."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Lay texts end to end."""
        builder = TextsBuilder()
        for text in texts:
            builder.add(text)
        return builder.build()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Read a text, or several."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, end = self.offsets[index : index + 2].tolist()
        return self.content[start:end].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class ImageFacts(Sequence[ImageFact]):
    """What is known of every distinct picture."""

    paths: Texts
    shapes: tuple[ImageShape, ...]
    """Those that occur."""

    numbers: NDArray[np.int32]
    """(images,) Which of the shapes each has."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Tokens of each, (images,)."""
        return self._of_each([shape.tokens for shape in self.shapes])

    @property
    def crops(self) -> NDArray[np.int32]:
        """Passes of the tower of each, (images,)."""
        return self._of_each([shape.crops for shape in self.shapes])

    def _of_each(self, values: list[int]) -> NDArray[np.int32]:
        return np.asarray(values, np.int32)[self.numbers]

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> ImageFact: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageFact]: ...
    def __getitem__(self, index: int | slice) -> ImageFact | list[ImageFact]:
        """Read a fact, or several."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return ImageFact(Path(self.paths[index]), self.shapes[self.numbers[index]])


class TextsBuilder:
    """Grows `Texts`, without an object for each."""

    def __init__(self) -> None:
        self._content, self._offsets = bytearray(), array("q", [0])

    def add(self, text: str) -> None:
        """Lay one more text behind the others."""
        # A path may hold bytes that are no UTF-8; Python keeps them as surrogates.
        self._content += text.encode("utf-8", "surrogateescape")
        self._offsets.append(len(self._content))

    def build(self) -> Texts:
        """Hand the texts over."""
        return Texts(bytes(self._content), np.frombuffer(self._offsets, np.int64))


class RaggedBuilder:
    """Grows a `Ragged` list by list, without an object for each."""

    def __init__(self) -> None:
        self._values, self._offsets = array("i"), array("q", [0])

    def add(self, values: Iterable[int]) -> None:
        """Lay one more list behind the others."""
        self._values.extend(values)
        self._offsets.append(len(self._values))

    def build(self) -> Ragged:
        """Hand the lists over; nothing is copied, and nothing may be added any more."""
        return Ragged(np.frombuffer(self._values, np.int32), np.frombuffer(self._offsets, np.int64))


@dataclass(frozen=True)
class EncodedExamples(Sequence[Encoded]):
    """Examples as tokens; an `Encoded` is made when it is asked for."""

    ids: Texts

    prompts: Ragged
    """Of each first turn; an image of it stands as -(1 + its number in `images`)."""

    rest: Ragged
    """What follows the first prompt; image k of the example stands as -(k + 1)."""

    learnt: NDArray[np.bool_]
    """Of each value of `rest`, whether it is to be predicted; a prompt never is."""

    owned: Ragged
    """Image numbers of all turns."""

    images: ImageFacts

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Encoded]:
        return map(self.__getitem__, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """Read an example, or several."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        (prompt,), (owned,) = self.prompts.take([index]), self.owned.take([index])
        local = [-1 - owned.index(-1 - entry) if entry < 0 else entry for entry in prompt]
        start, end = self.rest.offsets[index : index + 2].tolist()
        unlearnt = np.zeros(len(local), np.bool_)
        return Encoded(
            id=self.ids[index],
            entries=np.concatenate([np.asarray(local, np.int32), self.rest.values[start:end]]),
            learnt=np.concatenate([unlearnt, self.learnt[start:end]]),
            prompt_entries=len(local),
            images=tuple(Path(self.images.paths[number]) for number in owned),
        )

    def without_targets(self) -> NDArray[np.int64]:
        """List the examples in which nothing is learnt."""
        before = np.concatenate([[0], np.cumsum(self.learnt)])[self.rest.offsets]
        return np.flatnonzero(np.diff(before) == 0)
