"""A data set + the real planner -> what is in every row of an epoch, and in its images (pure)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.config import Recipe
from foveal.data.dataset import Dataset
from foveal.data.encode import Encoded
from foveal.data.encoded.packed import EncodedExamples
from foveal.data.forward_inputs import GroupSpan
from foveal.data.row_planning.groups import Row
from foveal.data.row_planning.sizes import Sizes
from foveal.data.rows import Plan
from foveal.models.family import Family


@dataclass(frozen=True)
class RowCounts:
    """What is in one forward pass: all that its memory and its work hang on."""

    examples: int
    """That a step counts: of several answers to one prompt, one."""

    tokens: int
    """That the model reads, shared ones once."""

    pairs: int
    """Of tokens of which the first sees the second."""

    branch_tokens: int
    """That stand behind a shared prefix."""

    branch_cells: int
    """Of the masks of branches: branch tokens x tokens of their group."""

    branch_keys: int
    """Tokens of groups that have branches."""

    images: int
    image_tokens: int
    """Of distinct pictures."""

    crops: int
    """Of distinct pictures, global views included."""

    targets: int
    """Tokens that are to be predicted."""

    crop_pairs: int = 0
    """Of crops of one image: what a tower that looks over a whole image works out."""

    prefix_squares: int = 0
    """Tokens of prefixes, squared: cells of masks where a prefix is not causal alone."""


RankRows = tuple[RowCounts, ...]
"""The rows of one rank behind one optimizer step; empty passes are left out."""


@dataclass(frozen=True)
class Epoch:
    """Every step of one epoch, and the data that they are cut from."""

    steps: tuple[tuple[RankRows, ...], ...]
    """Step -> rank."""

    examples: int
    steps_per_epoch: int
    """More than `steps` where only some were planned."""

    saved_tokens_share: float
    """Of all tokens, those that sharing spares."""

    tokens_of_images: NDArray[np.int32]
    crops_of_images: NDArray[np.int32]
    questions_of_images: NDArray[np.int64]

    @cached_property
    def rows(self) -> tuple[RowCounts, ...]:
        """All rows."""
        return tuple(row for step in self.steps for rank in step for row in rank)

    @property
    def most_rows(self) -> int:
        """Most passes that one rank has behind one optimizer step."""
        return max(len(rank) for step in self.steps for rank in step)

    @property
    def total(self) -> RowCounts:
        """All rows together."""
        return add_up(self.rows)


def add_up(rows: Iterable[RowCounts]) -> RowCounts:
    """Add rows up."""
    names = [field.name for field in fields(RowCounts)]
    table = [[getattr(row, name) for name in names] for row in rows]
    return RowCounts(*(int(total) for total in np.sum(table, axis=0))) if table else NOTHING


NOTHING = RowCounts(*(0 for _ in fields(RowCounts)))


def make_plan(
    recipe: Recipe,
    dataset: Dataset,
    world_size: int,
    family: Family,
    processor: Any,
) -> Plan:
    """Plan the steps of a recipe; where examples are read one by one, each has a row of its own."""
    alone = family.route == "plain"
    return Plan(
        dataset.sizes,
        examples_per_step=recipe.train.examples_per_step,
        tokens_per_pass=1 if alone else recipe.train.tokens_per_pass,
        world_size=world_size,
        seed=recipe.train.seed,
        share_images=recipe.data.share_images and not alone,
        order=recipe.data.order,
        long_context_tokens=processor.long_context_tokens,
        costs=family.row_costs(processor),
    )


def plan_epoch(plan: Plan, targets: NDArray[np.int64], most_steps: int | None = None) -> Epoch:
    """Run the planner over an epoch.

    Args:
        plan: of the run.
        targets: learnt tokens of each example.
        most_steps: plan so many, evenly spread, instead of all.
    """
    number = plan.steps_per_epoch
    count = min(most_steps or number, number)
    return plan_steps(plan, targets, sorted({index * number // count for index in range(count)}))


def plan_steps(plan: Plan, targets: NDArray[np.int64], chosen: Sequence[int]) -> Epoch:
    """Run the planner over some steps of a run."""
    steps = tuple(
        tuple(tuple(_rows(rank, plan.sizes, targets)) for rank in plan.step(index).ranks)
        for index in chosen
    )
    kept = sum(row.tokens for step in steps for rank in step for row in rank)
    separate = sum(int(plan.sizes.tokens[plan.examples(index)].sum()) for index in chosen)
    sizes = plan.sizes
    return Epoch(
        steps,
        sizes.num_sets,
        plan.steps_per_epoch,
        1 - kept / separate,
        sizes.image_tokens,
        sizes.image_crops,
        _questions_of_images(sizes),
    )


def _questions_of_images(sizes: Sizes) -> NDArray[np.int64]:
    """Count the examples that show each image; the answers of a set show the same."""
    asks = np.zeros(len(sizes.tokens), bool)
    asks[sizes.firsts] = True
    shown = sizes.images.values[np.repeat(asks, np.diff(sizes.images.offsets))]
    return np.bincount(shown, minlength=len(sizes.image_tokens))


def _rows(rows: Sequence[Row], sizes: Sizes, targets: NDArray[np.int64]) -> Iterator[RowCounts]:
    return (count_row(row, sizes, targets) for row in rows if row.groups)


def count_row(row: Row, sizes: Sizes, targets: NDArray[np.int64]) -> RowCounts:
    """Count what is in a row."""
    tokens = pairs = behind = cells = keys = squares = 0
    for group in row.groups:
        prefix = group.prefix_tokens
        pairs += prefix * (prefix + 1) // 2
        squares += prefix**2
        # A single example is all prefix.
        branches = group.branch_tokens(sizes) if len(group.examples) > 1 else []
        pairs += sum(one * prefix + one * (one + 1) // 2 for one in branches)
        tokens += prefix + sum(branches)
        behind += sum(branches)
        cells += sum(branches) * (prefix + sum(branches))
        keys += prefix + sum(branches) if branches else 0
    images = list(row.images(sizes))
    return RowCounts(
        examples=sizes.num_sets_in(row.examples),
        tokens=tokens,
        pairs=pairs,
        branch_tokens=behind,
        branch_cells=cells,
        branch_keys=keys,
        images=len(images),
        image_tokens=int(sizes.image_tokens[images].sum()),
        crops=int(sizes.image_crops[images].sum()),
        targets=int(targets[list(row.examples)].sum()),
        crop_pairs=int((sizes.image_crops[images].astype(np.int64) ** 2).sum()),
        prefix_squares=squares,
    )


def seen_pairs(groups: Iterable[GroupSpan]) -> int:
    """Count the pairs of tokens of which the first sees the second."""
    pairs = 0
    for group in groups:
        prefix = group.prefix_end - group.start
        pairs += prefix * (prefix + 1) // 2
        for start, end in group.branches:
            pairs += (end - start) * prefix + (end - start) * (end - start + 1) // 2
    return pairs


def targets_of(examples: Sequence[Encoded]) -> NDArray[np.int64]:
    """Count the learnt tokens of each example."""
    if isinstance(examples, EncodedExamples):
        return examples.targets.astype(np.int64)
    return np.asarray([int(example.learnt.sum()) for example in examples], np.int64)


def histogram(values: NDArray[np.generic], most_bins: int = 8) -> list[tuple[int, int, int]]:
    """Count values in bins: (from, to, how many); whole numbers, ends included."""
    numbers = np.asarray(values, np.int64)
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(distinct) <= most_bins:
        pairs = zip(distinct.tolist(), counts.tolist(), strict=True)
        return [(value, value, count) for value, count in pairs]
    edges = np.linspace(distinct[0], distinct[-1] + 1, most_bins + 1).astype(np.int64)
    counts, _ = np.histogram(numbers, edges)
    ends = zip(edges[:-1].tolist(), (edges[1:] - 1).tolist(), counts.tolist(), strict=True)
    return [(start, end, count) for start, end, count in ends if count]
