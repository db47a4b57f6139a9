"""One example -> what the model sees of it: crops in order, tokens, and which are learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.data.batch import open_as_planned
from foveal.data.dataset import Dataset
from foveal.data.encode import Encoded
from foveal.data.images.boxes import Box
from foveal.errors import DataError
from foveal.models.generation.characters import token_bytes
from foveal.report.html import data_uri

PICTURES = 8
"""Most pictures of an example that are shown; the others are counted."""

LONGEST_SIDE = 720
"""Of a shown picture, pixels."""


@dataclass(frozen=True)
class SeenPicture:
    """A picture as the model is shown it, and its grid of crops where it is cut into one."""

    name: str
    rows: int = 0
    columns: int = 0
    tokens: int = 0
    uri: str = ""
    overview: str = ""
    """The whole picture as one more crop; empty where its only crop is that."""

    problem: str = ""
    """Why it cannot be shown."""

    boxes: tuple[Box, ...] = ()
    """Of what is learnt, each edge as a share of what is shown."""

    @property
    def crops(self) -> int:
        """Count its own crops."""
        return self.rows * self.columns


@dataclass(frozen=True)
class SeenTokens:
    """Neighbouring tokens of one kind."""

    kind: str
    """`read`, `learnt` or `image`."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class SeenAnswer:
    """One of several answers to a prompt, side by side with the others."""

    role: str
    """`chosen` or `rejected`."""

    tokens: int
    runs: tuple[SeenTokens, ...]


@dataclass(frozen=True)
class SeenExample:
    """An example on the page."""

    id: str
    source: str
    line: str
    tokens: int
    learnt: int
    pictures: tuple[SeenPicture, ...]
    more_pictures: int
    runs: tuple[SeenTokens, ...]
    """Of answers that are compared only what stands before them."""

    answers: tuple[SeenAnswer, ...] = ()
    """That are compared; none: the example has one, among its runs."""


def see_example(
    place: int, line: str, source: str, dataset: Dataset, processor: Any
) -> SeenExample:
    """Encode nothing anew: show what the data set holds for the model.

    Args:
        place: of the example in the data set; of several answers to a prompt, of the first.
        line: what to call the place in its file.
        source: name of the data set that it comes from.
        dataset: that it belongs to.
        processor: with a `tokenizer`.
    """
    encoded, numbers = dataset.examples[place], dataset.image_numbers(place)
    distinct = list(dict.fromkeys(numbers))
    lengths = [dataset.images[one].shape.tokens for one in numbers]
    runs = tuple(_runs(encoded, lengths, processor))
    said = processor.decode_answer(encoded.entries[encoded.learnt].tolist())
    answers: tuple[SeenAnswer, ...] = ()
    if dataset.sizes.sets is not None:
        (members,) = dataset.sizes.members(np.asarray(dataset.sizes.set_of([place])))
        answers = tuple(_see_answers([dataset.examples[one] for one in members], processor))
        runs = runs[:-1]  # all that is learnt is the answer, at the end
    return SeenExample(
        id=encoded.id,
        source=source,
        line=line,
        tokens=int(dataset.sizes.tokens[place]),
        learnt=int(encoded.learnt.sum()),
        pictures=tuple(see_picture(dataset, one, processor, said) for one in distinct[:PICTURES]),
        more_pictures=max(0, len(distinct) - PICTURES),
        runs=runs,
        answers=answers,
    )


def _see_answers(answers: Sequence[Encoded], processor: Any) -> Iterator[SeenAnswer]:
    for number, one in enumerate(answers):
        own = replace(
            one,
            entries=one.entries[one.prompt_entries :],
            learnt=one.learnt[one.prompt_entries :],
        )
        role = "rejected" if number else "chosen"
        yield SeenAnswer(role, len(own.entries), tuple(_runs(own, (), processor)))


def _runs(encoded: Encoded, image_tokens: Sequence[int], processor: Any) -> Iterator[SeenTokens]:
    """Fold each image into one piece, and put neighbours of one kind together."""
    entries = encoded.entries.tolist()
    tokenizer = processor.tokenizer.backend_tokenizer
    pieces = []
    for entry, learnt in zip(entries, encoded.learnt.tolist(), strict=True):
        if entry < 0:
            pieces.append(("image", f"<image: {image_tokens[-1 - entry]:,} tokens>"))
        else:
            pieces.append(("learnt" if learnt else "read", _as_text(token_bytes(tokenizer, entry))))
    for kind, some in groupby(pieces, key=lambda piece: piece[0]):
        yield SeenTokens(kind, tuple(text for _, text in some))


def _as_text(written: bytes) -> str:
    try:
        return written.decode().replace("\n", "⏎\n")
    except UnicodeDecodeError:  # a part of a character
        return "".join(f"<0x{byte:02X}>" for byte in written)


def see_picture(dataset: Dataset, number: int, processor: Any, answers: str = "") -> SeenPicture:
    """Cut a picture as for the model, and lay the crops side by side again.

    Args:
        dataset: that it belongs to.
        number: of the picture.
        processor: that reads it.
        answers: texts that may speak of boxes in it, in the model's numbers.
    """
    fact = dataset.images[number]
    try:
        image = open_as_planned(fact, processor)
    except DataError as error:
        return SeenPicture(fact.path.name, problem=str(error))
    boxes = processor.box_frame(*image.size).shares(answers) if processor.boxes else ()
    rows, columns = fact.shape.grid[-2:] if processor.cuts_images else (0, 0)
    overview = ""
    if processor.cuts_images:
        crops = processor.cut(image).numpy()
        image, side = Image.fromarray(_joined(crops, rows, columns)), crops.shape[-1]
        if len(crops) > 1:
            overview = data_uri(image.resize((side, side), Image.Resampling.BICUBIC))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return SeenPicture(
        fact.path.name,
        rows,
        columns,
        fact.shape.tokens,
        data_uri(image),
        overview,
        boxes=tuple(boxes),
    )


def _joined(crops: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    side = crops.shape[-1]
    cut = crops.reshape(rows, columns, 3, side, side).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(cut.reshape(rows * side, columns * side, 3))
