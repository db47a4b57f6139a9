"""Examples behind one prefix, prefixes in one pass, passes of a step, and what they cost (pure)."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

from foveal.data.row_planning.sizes import Sizes


@dataclass(frozen=True)
class Group:
    """One prefix and the branches that see it; a single example is all prefix."""

    examples: tuple[int, ...]
    prefix_tokens: int

    def branch_tokens(self, sizes: Sizes) -> list[int]:
        """Count what each example adds to the prefix."""
        return [int(sizes.tokens[example]) - self.prefix_tokens for example in self.examples]

    def tokens(self, sizes: Sizes) -> int:
        """Count the tokens that the model reads: the prefix once, and every branch."""
        return self.prefix_tokens + sum(self.branch_tokens(sizes))


@dataclass(frozen=True)
class Row:
    """One forward pass of one rank; without groups where a rank has nothing left to do."""

    groups: tuple[Group, ...] = ()

    @property
    def examples(self) -> tuple[int, ...]:
        """Examples of all groups."""
        return tuple(example for group in self.groups for example in group.examples)

    def tokens(self, sizes: Sizes) -> int:
        """Count the tokens that the model reads."""
        return sum(group.tokens(sizes) for group in self.groups)

    def images(self, sizes: Sizes) -> set[int]:
        """Name the images that the tower encodes, each once."""
        return set(chain.from_iterable(sizes.images.take(self.examples)))


@dataclass(frozen=True)
class Step:
    """The rows of every rank behind one optimizer step: the same number for each rank."""

    ranks: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class Costs:
    """What work costs, in decoder tokens."""

    pair: float = 0.0
    """A token that looks at a token."""

    crop: float = 0.0
    """A crop through the vision tower; of towers that take patches one by one, a patch."""

    def text(self, tokens: Any, seen: Any = 0) -> Any:
        """Price tokens that see each other causally, and all `seen` tokens before them.

        Numbers, or arrays of them.
        """
        return tokens + self.pair * tokens * (seen + (tokens + 1) / 2)

    def group(self, group: Group, sizes: Sizes) -> float:
        """Price a group in a row of its own."""
        return self.row(Row((group,)), sizes)

    def row(self, row: Row, sizes: Sizes) -> float:
        """Price one forward pass."""
        price = self.crop * int(sizes.image_crops[list(row.images(sizes))].sum())
        for group in row.groups:
            price += self.text(group.prefix_tokens)
            price += sum(self.text(b, group.prefix_tokens) for b in group.branch_tokens(sizes))
        return price


TOKENS_ALONE = Costs()
