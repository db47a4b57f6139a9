"""A data set, its processor and its plan -> one self-contained page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.data.batch import open_as_planned
from foveal.data.dataset import Dataset
from foveal.data.encode import Encoded
from foveal.data.images.boxes import Box
from foveal.data.lines import Examples
from foveal.data.row_planning.groups import Row, Sizes
from foveal.data.rows import RowPlanner
from foveal.errors import DataError
from foveal.models.generation.characters import token_bytes
from foveal.report.charts import Chart
from foveal.report.html import data_uri, write_page
from foveal.report.plots import Line, draw

STEPS = 3
"""Steps whose rows are drawn."""

ROWS = 24
"""Rows of a step that are drawn; the others are counted."""

BARS = 24
"""Most bars of a distribution."""

IMAGES = 8
"""Most images of an example that are shown; the others are counted."""

LONGEST_SIDE = 720
"""Of a shown image, pixels."""


def write_inspection(
    out: Path,
    examples: Examples,
    dataset: Dataset,
    processor: Any,
    planner: RowPlanner,
    number: int,
    settings: dict[str, str],
) -> Path:
    """Write the page.

    Args:
        out: the page.
        examples: as they stand in their files.
        dataset: the same, encoded.
        processor: that encoded them.
        planner: of a run over them.
        number: examples to show, spread over all.
        settings: names and values that the page states.
    """
    sizes = dataset.sizes
    count = min(number, sizes.num_sets)
    places = [k * sizes.num_sets // count for k in range(count)]
    firsts = lines = places
    if sizes.sets is not None:
        firsts = sizes.sets[places].tolist()
        lines = np.asarray(_lines_of_sets(examples))[places].tolist()
    shown = [
        see_example(first, _line(examples, line), examples[line].source, dataset, processor)
        for first, line in zip(firsts, lines, strict=True)
    ]
    width, steps = draw_steps(planner)
    return write_page(
        out,
        "inspect.html",
        folder=Path(__file__).parent,
        title=examples.files[0].path.name,
        settings=settings,
        examples=sizes.num_sets,
        images=len(dataset.images),
        tokens=int(sizes.tokens.sum(dtype=np.int64)),
        learnt=dataset.learnt_tokens(),
        image_tokens=int(sizes.image_tokens[sizes.images.values].sum(dtype=np.int64)),
        charts=_charts(dataset, cuts=processor.cuts_images),
        remarks=list(dataset.remarks.lines()),
        shown=shown,
        width=width,
        budget=planner.tokens_per_pass,
        steps=steps,
    )


def _lines_of_sets(examples: Examples) -> list[int]:
    """Name the example that each set of answers comes from: each turn that compares some."""
    numbered = enumerate(examples)
    return [place for place, one in numbered for turn in one.turns if turn.rejected]


def _line(examples: Examples, place: int) -> str:
    file, number = examples.find(place)
    return f"{file.name}:{number}"


def _charts(dataset: Dataset, *, cuts: bool) -> list[Chart]:
    sizes = dataset.sizes
    questions = np.bincount(sizes.images.values, minlength=len(dataset.images))
    charts = [_distribution("Tokens an example", sizes.tokens, "tokens", "examples")]
    if len(dataset.images):
        if cuts:
            words = "Crops a picture", sizes.image_crops, "crops, global view too"
        else:
            words = "Tokens a picture", sizes.image_tokens, "tokens"
        charts.append(_distribution(*words, "pictures"))
        charts.append(_distribution("Questions a picture", questions, "questions", "pictures"))
    return charts


def _distribution(title: str, values: NDArray[Any], x_label: str, y_label: str) -> Chart:
    low, high = int(values.min()), int(values.max())
    each = max(1, -(-(high - low + 1) // BARS))
    counts = np.bincount((values - low) // each)
    centres = np.arange(len(counts), dtype=np.float64) * each + low + (each - 1) / 2
    middle, mean = float(np.median(values)), float(values.mean())
    words = f"From {low:,} to {high:,}; half have at most {middle:,.0f}, the mean is {mean:,.1f}."
    if low == high:
        words = f"All have {low:,}."
    bars = Line(centres, counts.astype(np.float64), kind="bars", width=each * 0.86)
    name = title.lower().replace(" ", "-")
    margin = each * 0.7
    ends = (centres[0] - margin, centres[-1] + margin)
    if len(centres) == 1:
        ends = (max(-0.7, centres[0] - 2.5), centres[0] + 2.5)
    return Chart(title, words, draw(name, [bars], x_label, y_label, x_range=ends))


# -- the rows of steps -----------------------------------------------------------------------------


class BarSegment(NamedTuple):
    """A stretch of a row."""

    kind: str
    """`prefix`, `branch`, `alone` (an example by itself) or `empty`."""

    tokens: int
    words: str


@dataclass(frozen=True)
class DrawnStep:
    """The rows of one optimizer step."""

    examples: int
    tokens: int
    saved: int
    """Tokens that sharing spares."""

    filled: float
    """Share of the passes' room that holds tokens."""

    bars: tuple[tuple[BarSegment, ...], ...]
    """One a row, which is one forward pass."""

    more: int
    """Rows that are not drawn."""


def draw_steps(planner: RowPlanner) -> tuple[int, list[DrawnStep]]:
    """Lay out the first steps of a run on one process.

    Returns:
        Tokens that the drawing's whole width stands for, and the steps.
    """
    steps = [planner.step(number).ranks[0] for number in range(min(STEPS, planner.steps_per_epoch))]
    longest = max(row.tokens(planner.sizes) for rows in steps for row in rows)
    width = max(longest, planner.tokens_per_pass)
    return width, [_step(planner, rows, width) for rows in steps]


def _step(planner: RowPlanner, rows: tuple[Row, ...], width: int) -> DrawnStep:
    sizes = planner.sizes
    tokens = [row.tokens(sizes) for row in rows]
    separate = sum(int(sizes.tokens[list(row.examples)].sum()) for row in rows)
    room = sum(max(used, planner.tokens_per_pass) for used in tokens)
    return DrawnStep(
        examples=sum(sizes.num_sets_in(row.examples) for row in rows),
        tokens=sum(tokens),
        saved=separate - sum(tokens),
        filled=sum(tokens) / room,
        bars=tuple(tuple(_segments(row, sizes, width)) for row in rows[:ROWS]),
        more=max(0, len(rows) - ROWS),
    )


def _segments(row: Row, sizes: Sizes, width: int) -> Iterator[BarSegment]:
    for group in row.groups:
        prefix = group.prefix_tokens
        if len(group.examples) == 1:
            yield BarSegment("alone", prefix, f"one example, {prefix:,} tokens")
            continue
        words = f"prefix of {len(group.examples)} examples, {prefix:,} tokens"
        yield BarSegment("prefix", prefix, words)
        for tokens in group.branch_tokens(sizes):
            yield BarSegment("branch", tokens, f"a branch, {tokens:,} tokens")
    empty = width - row.tokens(sizes)
    yield BarSegment("empty", empty, f"empty, {empty:,} tokens")


# -- what the model sees of an example -------------------------------------------------------------


@dataclass(frozen=True)
class SeenImage:
    """An image as the model is shown it, and its grid of crops where it is cut into one."""

    name: str
    rows: int = 0
    columns: int = 0
    tokens: int = 0
    uri: str = ""
    overview: str = ""
    """The whole image as one more crop; empty where its only crop is that."""

    problem: str = ""
    """Why it cannot be shown."""

    boxes: tuple[Box, ...] = ()
    """Of what is learnt, each edge as a share of what is shown."""

    @property
    def crops(self) -> int:
        """Count its own crops."""
        return self.rows * self.columns


class SeenToken(NamedTuple):
    """A token, or all those of an image, folded."""

    kind: str
    """`read`, `learnt` or `image`."""

    text: str


class SeenAnswer(NamedTuple):
    """One of several answers to a prompt, side by side with the others."""

    role: str
    """`chosen` or `rejected`."""

    text: tuple[SeenToken, ...]


@dataclass(frozen=True)
class SeenExample:
    """An example on the page."""

    id: str
    source: str
    line: str
    tokens: int
    learnt: int
    images: tuple[SeenImage, ...]
    more_images: int
    text: tuple[SeenToken, ...]
    """Of answers that are compared only what stands before them."""

    answers: tuple[SeenAnswer, ...] = ()
    """That are compared; none: the example has one, in its text."""


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
    text = _tokens(encoded, lengths, processor)
    said = processor.decode_answer(encoded.entries[encoded.learnt].tolist())
    answers: list[SeenAnswer] = []
    if dataset.sizes.sets is not None:
        (members,) = dataset.sizes.members(np.asarray(dataset.sizes.set_of([place])))
        for member in members:  # they differ behind their prompt, and are of the same images
            own = _tokens(dataset.examples[member], lengths, processor)[encoded.prompt_entries :]
            answers.append(SeenAnswer("rejected" if answers else "chosen", own))
        text = text[: encoded.prompt_entries]
    return SeenExample(
        id=encoded.id,
        source=source,
        line=line,
        tokens=int(dataset.sizes.tokens[place]),
        learnt=int(encoded.learnt.sum()),
        images=tuple(see_image(dataset, one, processor, said) for one in distinct[:IMAGES]),
        more_images=max(0, len(distinct) - IMAGES),
        text=text,
        answers=tuple(answers),
    )


def _tokens(encoded: Encoded, image_tokens: Sequence[int], processor: Any) -> tuple[SeenToken, ...]:
    """Write out the entries of an example, each image folded into one."""
    tokenizer = processor.tokenizer.backend_tokenizer
    return tuple(
        SeenToken("image", f"<image: {image_tokens[-1 - entry]:,} tokens>")
        if entry < 0
        else SeenToken("learnt" if learnt else "read", _as_text(token_bytes(tokenizer, entry)))
        for entry, learnt in zip(encoded.entries.tolist(), encoded.learnt.tolist(), strict=True)
    )


def _as_text(written: bytes) -> str:
    try:
        return written.decode().replace("\n", "⏎\n")
    except UnicodeDecodeError:  # a part of a character
        return "".join(f"<0x{byte:02X}>" for byte in written)


def see_image(dataset: Dataset, number: int, processor: Any, answers: str = "") -> SeenImage:
    """Cut an image as for the model, and lay the crops side by side again.

    Args:
        dataset: that it belongs to.
        number: of the image.
        processor: that reads it.
        answers: texts that may speak of boxes in it, in the model's numbers.
    """
    fact = dataset.images[number]
    try:
        image = open_as_planned(fact, processor)
    except DataError as error:
        return SeenImage(fact.path.name, problem=str(error))
    boxes = processor.box_frame(*image.size).shares(answers) if processor.boxes else ()
    rows, columns = fact.shape.grid[-2:] if processor.cuts_images else (0, 0)
    overview = ""
    if processor.cuts_images:
        crops = processor.cut(image).numpy()
        image, side = Image.fromarray(_joined(crops, rows, columns)), crops.shape[-1]
        if len(crops) > 1:
            overview = data_uri(image.resize((side, side), Image.Resampling.BICUBIC))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return SeenImage(
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
