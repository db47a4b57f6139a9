"""A data set, its processor and its plan -> one self-contained page."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.dataset import Dataset
from foveal.data.lines import Examples
from foveal.data.row_planning.groups import Row, Sizes
from foveal.data.rows import Plan
from foveal.inspect.seen import see_example
from foveal.report.charts import Chart
from foveal.report.html import write_page
from foveal.report.plots import Line, draw

STEPS = 3
"""Steps whose rows are drawn."""

ROWS = 24
"""Rows of a step that are drawn; the others are counted."""

BARS = 24
"""Most bars of a distribution."""


@dataclass(frozen=True)
class Facts:
    """What the page says of the whole."""

    examples: int
    pictures: int
    tokens: int
    learnt: int
    image_tokens: int
    """Of all examples."""


def write_inspection(
    out: Path,
    examples: Examples,
    dataset: Dataset,
    processor: Any,
    plan: Plan,
    number: int,
    settings: dict[str, str],
) -> Path:
    """Write the page.

    Args:
        out: the page.
        examples: as they stand in their files.
        dataset: the same, encoded.
        processor: that encoded them.
        plan: of a run over them.
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
    width, steps = draw_steps(plan, STEPS)
    return write_page(
        out,
        "inspect.html",
        folder=Path(__file__).parent,
        title=examples.files[0].path.name,
        settings=settings,
        facts=_facts(dataset),
        charts=_charts(dataset, cuts=processor.cuts_images),
        remarks=list(dataset.remarks.lines()),
        shown=shown,
        width=width,
        budget=plan.tokens_per_pass,
        steps=steps,
    )


def _lines_of_sets(examples: Examples) -> list[int]:
    """Name the example that each set of answers comes from: each turn that compares some."""
    numbered = enumerate(examples)
    return [place for place, one in numbered for turn in one.turns if turn.rejected]


def _line(examples: Examples, place: int) -> str:
    file, number = examples.find(place)
    return f"{file.name}:{number}"


def _facts(dataset: Dataset) -> Facts:
    sizes = dataset.sizes
    return Facts(
        examples=sizes.num_sets,
        pictures=len(dataset.images),
        tokens=int(sizes.tokens.sum(dtype=np.int64)),
        learnt=dataset.learnt_tokens(),
        image_tokens=int(sizes.image_tokens[sizes.images.values].sum(dtype=np.int64)),
    )


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
    bars = Line(centres, counts.astype(np.float64), kind="bars", width=each * 0.86)
    name = title.lower().replace(" ", "-")
    margin = each * 0.7
    ends = (centres[0] - margin, centres[-1] + margin)
    if len(centres) == 1:
        ends = (max(-0.7, centres[0] - 2.5), centres[0] + 2.5)
    return Chart(title, words, draw(name, [bars], x_label, y_label, x_range=ends))


@dataclass(frozen=True)
class BarPiece:
    """A stretch of a row."""

    kind: str
    """`prefix`, `branch`, `alone` (an example by itself) or `empty`."""

    tokens: int
    share: float
    """Of the drawing's width, 0 to 1."""

    words: str


@dataclass(frozen=True)
class Bar:
    """One row: one forward pass."""

    tokens: int
    pieces: tuple[BarPiece, ...]


@dataclass(frozen=True)
class DrawnStep:
    """The rows of one optimizer step."""

    number: int
    """From 1."""

    examples: int
    tokens: int
    saved: int
    """Tokens that sharing spares."""

    filled: float
    """Share of the passes' room that holds tokens."""

    bars: tuple[Bar, ...]
    more: int


def draw_steps(plan: Plan, count: int) -> tuple[int, tuple[DrawnStep, ...]]:
    """Lay out the first steps of a run on one process.

    Args:
        plan: of the run.
        count: steps to draw.

    Returns:
        Tokens that the drawing's whole width stands for, and the steps.
    """
    steps = [plan.step(number).ranks[0] for number in range(min(count, plan.steps_per_epoch))]
    longest = max(row.tokens(plan.sizes) for rows in steps for row in rows)
    width = max(longest, plan.tokens_per_pass)
    drawn = tuple(_step(plan, number, rows, width) for number, rows in enumerate(steps, start=1))
    return width, drawn


def _step(plan: Plan, number: int, rows: tuple[Row, ...], width: int) -> DrawnStep:
    sizes = plan.sizes
    tokens = [row.tokens(sizes) for row in rows]
    separate = sum(int(sizes.tokens[list(row.examples)].sum()) for row in rows)
    room = sum(max(used, plan.tokens_per_pass) for used in tokens)
    bars = tuple(Bar(row.tokens(sizes), tuple(_pieces(row, sizes, width))) for row in rows[:ROWS])
    return DrawnStep(
        number=number,
        examples=sum(sizes.num_sets_in(row.examples) for row in rows),
        tokens=sum(tokens),
        saved=separate - sum(tokens),
        filled=sum(tokens) / room,
        bars=bars,
        more=max(0, len(rows) - ROWS),
    )


def _pieces(row: Row, sizes: Sizes, width: int) -> Iterator[BarPiece]:
    for group in row.groups:
        prefix = group.prefix_tokens
        if len(group.examples) == 1:
            yield BarPiece("alone", prefix, prefix / width, f"one example, {prefix:,} tokens")
            continue
        words = f"prefix of {len(group.examples)} examples, {prefix:,} tokens"
        yield BarPiece("prefix", prefix, prefix / width, words)
        for tokens in group.branch_tokens(sizes):
            yield BarPiece("branch", tokens, tokens / width, f"a branch, {tokens:,} tokens")
    empty = width - row.tokens(sizes)
    yield BarPiece("empty", empty, empty / width, f"empty, {empty:,} tokens")
