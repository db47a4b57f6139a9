"""Rows of the first steps -> bars to scale: prefix, branches, and what stays empty (pure)."""

from collections.abc import Iterator
from dataclasses import dataclass

from foveal.data.row_planning.groups import Row
from foveal.data.row_planning.sizes import Sizes
from foveal.data.rows import Plan

ROWS = 24
"""Rows of a step that are drawn; the others are counted."""


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
