"""A data set + the real planner -> what is in every row of an epoch, and in its images (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.config import Recipe
from foveal.data.dataset import Dataset
from foveal.data.row_planning.groups import Row, Sizes
from foveal.data.rows import RowPlanner
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
    """Of distinct images."""

    crops: int
    """Of distinct images, global views included."""

    targets: int
    """Tokens that are to be predicted."""

    crop_pairs: int = 0
    """Of crops of one image: what a tower that looks over a whole image works out."""

    prefix_squares: int = 0
    """Tokens of prefixes, squared: cells of masks where a prefix is not causal alone."""

    @property
    def one(self) -> int:
        """The row itself."""
        return 1

    @property
    def token_squares(self) -> int:
        """Cells of a mask of the whole row."""
        return self.tokens**2


RankRows = tuple[RowCounts, ...]
"""The rows of one rank behind one optimizer step; empty passes are left out."""


@dataclass(frozen=True)
class Epoch:
    """Every step of one epoch, or some of them."""

    steps: tuple[tuple[RankRows, ...], ...]
    """Step -> rank."""

    separate_tokens: int
    """That the model would read if nothing were shared."""

    @cached_property
    def rows(self) -> tuple[RowCounts, ...]:
        """All rows."""
        return tuple(row for step in self.steps for rank in step for row in rank)

    @property
    def most_rows(self) -> int:
        """Most passes that one rank has behind one optimizer step."""
        return max(len(rank) for step in self.steps for rank in step)

    @cached_property
    def total(self) -> RowCounts:
        """All rows together."""
        names = [field.name for field in fields(RowCounts)]
        return RowCounts(*(sum(getattr(row, name) for row in self.rows) for name in names))


def make_row_planner(
    recipe: Recipe,
    dataset: Dataset,
    world_size: int,
    family: Family,
    processor: Any,
) -> RowPlanner:
    """Plan the steps of a recipe; where examples are read one by one, each has a row of its own."""
    alone = family.route == "plain"
    return RowPlanner(
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


def plan_steps(planner: RowPlanner, targets: NDArray[np.integer], chosen: Sequence[int]) -> Epoch:
    """Run the planner over some steps of an epoch.

    Args:
        planner: of the run.
        targets: learnt tokens of each example.
        chosen: steps.
    """
    sizes = planner.sizes
    steps = tuple(
        tuple(
            tuple(count_row(row, sizes, targets) for row in rank if row.groups)
            for rank in planner.step(index).ranks
        )
        for index in chosen
    )
    return Epoch(steps, sum(int(sizes.tokens[planner.examples(one)].sum()) for one in chosen))


def count_row(row: Row, sizes: Sizes, targets: NDArray[np.integer]) -> RowCounts:
    """Count what is in a row."""
    images = list(row.images(sizes))
    groups = [
        # A single example is all prefix.
        (one.prefix_tokens, one.branch_tokens(sizes) if len(one.examples) > 1 else [])
        for one in row.groups
    ]
    return count_groups(
        groups,
        sizes.image_tokens[images],
        sizes.image_crops[images],
        examples=sizes.num_sets_in(row.examples),
        targets=int(targets[list(row.examples)].sum()),
    )


def count_groups(
    groups: Iterable[tuple[int, Sequence[int]]],
    image_tokens: NDArray[np.integer],
    image_crops: NDArray[np.integer],
    *,
    examples: int,
    targets: int,
) -> RowCounts:
    """Count what is in groups.

    Args:
        groups: tokens of each one's prefix, and of its branches.
        image_tokens: of each distinct image.
        image_crops: of each distinct image, global views included.
        examples: that a step counts.
        targets: tokens that are to be predicted.
    """
    tokens = pairs = behind = cells = keys = squares = 0
    for prefix, branches in groups:
        length = prefix + sum(branches)
        tokens += length
        pairs += prefix * (prefix + 1) // 2
        pairs += sum(one * prefix + one * (one + 1) // 2 for one in branches)
        behind += sum(branches)
        cells += sum(branches) * length
        keys += length if branches else 0
        squares += prefix**2
    return RowCounts(
        examples=examples,
        tokens=tokens,
        pairs=pairs,
        branch_tokens=behind,
        branch_cells=cells,
        branch_keys=keys,
        images=len(image_tokens),
        image_tokens=int(image_tokens.sum()),
        crops=int(image_crops.sum()),
        targets=targets,
        crop_pairs=int((image_crops.astype(np.int64) ** 2).sum()),
        prefix_squares=squares,
    )


def questions_of_images(sizes: Sizes) -> NDArray[np.int64]:
    """Count the examples that show each image; the answers of a set show the same."""
    asks = np.zeros(len(sizes.tokens), bool)
    asks[sizes.firsts] = True
    shown = sizes.images.values[np.repeat(asks, np.diff(sizes.images.offsets))]
    return np.bincount(shown, minlength=len(sizes.image_tokens))


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
