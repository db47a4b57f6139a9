"""Sizes of examples -> which of them share a step, a rank, a row and a prefix; opens no file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveal.data.deal import Bundle, Member, Share, deal
from foveal.data.epochs import Shown, random_bits, shown_in_epoch, shuffled
from foveal.data.sizes import Sizes, common_run, families, image_entries


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
    """What work costs, in decoder tokens; the defaults fit Phi-3.5-vision."""

    token: float = 1.0
    pair: float = 5.3e-5
    """A token that looks at a token."""

    crop: float = 47.0
    """A crop through the vision tower."""

    def text(self, tokens: int, seen: int = 0) -> float:
        """Price tokens that see each other causally, and all `seen` tokens before them."""
        return self.token * tokens + self.pair * tokens * (seen + (tokens + 1) / 2)

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


PHI35_VISION_COSTS = Costs()


@dataclass(frozen=True)
class PlanStatistics:
    """What some steps come to."""

    examples: int
    rows: int
    """Rows that hold anything."""

    tokens: int
    saved_tokens: int
    """Tokens that sharing spares."""

    balance: float
    """Share of the time that ranks work, if they wait for the costliest after each step."""


def summarize(
    steps: Iterable[Step], sizes: Sizes, costs: Costs = PHI35_VISION_COSTS
) -> PlanStatistics:
    """Add up steps."""
    examples = rows = tokens = separate = 0
    work = time = 0.0
    for step in steps:
        loads = [sum(costs.row(row, sizes) for row in rank) for rank in step.ranks]
        work += sum(loads)
        time += max(loads) * len(loads)
        for row in chain.from_iterable(step.ranks):
            examples += len(row.examples)
            rows += bool(row.groups)
            tokens += row.tokens(sizes)
            separate += int(sizes.tokens[list(row.examples)].sum())
    return PlanStatistics(examples, rows, tokens, separate - tokens, work / time)


class Plan:
    """Every step of a run; a pure function of its arguments, so ranks agree without talking.

    Answers that stand in a set never part: they share a row, however large it is.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        examples_per_step: int,
        tokens_per_pass: int,
        world_size: int = 1,
        seed: int = 0,
        share_images: bool = True,
        order: Literal["shuffled", "as_is"] = "shuffled",
        long_context_tokens: int | None = None,
        costs: Costs = PHI35_VISION_COSTS,
    ) -> None:
        if not len(sizes.tokens):
            raise ValueError("a plan needs at least one example")
        self.sizes = sizes
        self.examples_per_step = examples_per_step
        self.tokens_per_pass = tokens_per_pass
        self.world_size = world_size
        self.seed = seed
        self.share_images = share_images
        self.order = order
        self.costs = costs
        files = sizes.shown or (Shown(sizes.num_sets),)
        self.steps_per_epoch = -(-sum(file.an_epoch for file in files) // examples_per_step)
        self._latest_order: tuple[int, NDArray[np.int64]] | None = None
        # Of each set: its family, its tokens, whether it is long, and whether a part of it is.
        firsts = sizes.first_of_sets()
        self._tokens = np.add.reduceat(sizes.tokens, firsts)
        self._families = families(sizes.prompts)[firsts]
        is_long = sizes.tokens > (long_context_tokens or np.inf)
        self._long = np.logical_or.reduceat(is_long, firsts)
        self._mixed = self._long != np.logical_and.reduceat(is_long, firsts)
        # Of each example: tokens that the images of its prompt add to their entries, the price
        # of the crops of those images, and that of the images of later turns.
        entries, owners = image_entries(sizes.prompts)
        shown = -1 - sizes.prompts.values[entries]
        count = len(sizes.tokens)
        self._expansion = np.bincount(owners, sizes.image_tokens[shown] - 1, count)
        self._crops = np.bincount(owners, costs.crop * sizes.image_crops[shown], count)
        crops = costs.crop * sizes.image_crops[sizes.images.values]
        owners = np.repeat(np.arange(count), np.diff(sizes.images.offsets))
        self._later_crops = (np.bincount(owners, crops, count) - self._crops)[firsts]

    def examples(self, step: int) -> NDArray[np.int64]:
        """List the examples of a step, whether or not they share images."""
        if self.sizes.sets is None:
            return self._sets(step)
        members = self.sizes.members(self._sets(step))
        return np.fromiter(chain.from_iterable(members), np.int64)

    def _sets(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._latest_order is None or self._latest_order[0] != epoch:
            self._latest_order = (epoch, self._epoch_order(epoch))
        start = place * self.examples_per_step
        return self._latest_order[1][start : start + self.examples_per_step]

    def step(self, index: int) -> Step:
        """Plan a step, counted over all epochs; needs none of the steps before it."""
        shares = deal(self._bundles(self._sets(index)), self.world_size)
        ranks = [self._rows(share) for share in shares]
        passes = max(map(len, ranks))
        return Step(tuple(rows + (Row(),) * (passes - len(rows)) for rows in ranks))

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """List the sets of an epoch."""
        examples, families = np.arange(len(self._families)), self._families
        if self.sizes.shown:
            examples, rounds = shown_in_epoch(self.sizes.shown, families, self.seed, epoch)
            # What is shown again meets its first showing no more than any other example.
            apart = families[examples] * (rounds.max() + 1) + rounds
            families = np.unique(apart, return_inverse=True)[1]
        if self.order == "as_is":
            return examples
        return examples[shuffled(families, self.examples_per_step, random_bits(self.seed, epoch))]

    def _bundles(self, sets: NDArray[np.int64]) -> list[Bundle]:
        """Put the sets of a step together by family; a long one never joins a short one."""
        keys = zip(self._families[sets].tolist(), self._long[sets].tolist(), strict=True)
        together: dict[tuple[int, bool], list[Member]] = {}
        columns = (self._tokens[sets], self._later_crops[sets])
        members = map(Member, self.sizes.members(sets), *[column.tolist() for column in columns])
        for key, member, is_mixed in zip(keys, members, self._mixed[sets].tolist(), strict=True):
            # One that is long and short shares nothing, not even within: it has no family.
            own = (-1 - member.examples[0], True) if is_mixed else key
            together.setdefault(own, []).append(member)
        grouped = chain.from_iterable([one.examples for some in together.values() for one in some])
        prompts = iter(self.sizes.prompts.take(list(grouped) if self.share_images else []))
        return [self._bundle(key, some, prompts) for key, some in together.items()]

    def _shares(self, key: tuple[int, bool]) -> bool:
        return self.share_images and key[0] >= 0

    def _bundle(
        self, key: tuple[int, bool], members: list[Member], prompts: Iterator[list[int]]
    ) -> Bundle:
        """Measure the prefix of members that have none yet, and price what comes behind it."""
        first, count = members[0].examples[0], sum([len(one.examples) for one in members])
        own = list(islice(prompts, count))
        prefix = self._prefix_tokens(first, own) if own and self._shares(key) else 0
        behind = [
            Member(examples, tokens - prefix * len(examples), cost + self._price(examples, prefix))
            for examples, tokens, cost in members
        ]
        shared_cost = self.costs.text(prefix) + float(self._crops[first])
        return Bundle(key, prefix, shared_cost, self.tokens_per_pass - prefix, behind)

    def _price(self, examples: tuple[int, ...], prefix: int) -> float:
        """Price what examples have behind a prefix."""
        tokens = [int(self.sizes.tokens[one]) - prefix for one in examples]
        return sum([self.costs.text(one, prefix) for one in tokens])

    def _prefix_tokens(self, example: int, prompts: list[list[int]]) -> int:
        """Count the tokens that prompts of one family begin with; `example` is one of it."""
        if len(prompts) == 1:
            return int(self.sizes.tokens[example])
        return common_run(prompts) + int(self._expansion[example])

    def _groups(self, bundle: Bundle) -> Iterator[tuple[int, tuple[Group, ...]]]:
        """Cut a bundle into groups that keep to the budget, with the tokens of those that meet."""
        shares = self._shares(bundle.key)
        pieces: list[list[Member]] = []
        room = 0
        for member in bundle.members:
            if not (pieces and shares and member.tokens <= room):
                pieces.append([])
                room = bundle.room
            pieces[-1].append(member)
            room -= member.tokens
        for piece in pieces:
            examples = tuple(chain.from_iterable([member.examples for member in piece]))
            if not shares:
                alone = [Group((one,), int(self.sizes.tokens[one])) for one in examples]
                yield sum(group.prefix_tokens for group in alone), tuple(alone)
                continue
            prefix = bundle.prefix_tokens
            if len(examples) == 1:
                prefix += piece[0].tokens
            elif not bundle.whole or len(pieces) > 1:
                prefix = self._prefix_tokens(examples[0], self.sizes.prompts.take(examples))
            longer = prefix - bundle.prefix_tokens
            behind = sum([member.tokens for member in piece]) - longer * len(examples)
            yield prefix + behind, (Group(examples, prefix),)

    def _rows(self, share: Share) -> tuple[Row, ...]:
        """Pack a rank's groups: the longest first, beside its images, else where it fits best."""
        pieces = [piece for bundle in share.bundles.values() for piece in self._groups(bundle)]
        rows: list[tuple[int, Row]] = []
        for tokens, groups in sorted(pieces, key=lambda pair: -pair[0]):
            fitting = [pair for pair in rows if pair[0] + tokens <= self.tokens_per_pass]
            used, row = self._best(fitting, groups) if fitting else (0, Row())
            if fitting:
                rows.remove((used, row))
            rows.append((used + tokens, Row((*row.groups, *groups))))
        # Sharded ranks wait for each other in every pass: the n-th passes should be alike.
        return tuple(row for _, row in sorted(rows, key=lambda pair: -pair[0]))

    def _best(self, fitting: list[tuple[int, Row]], groups: tuple[Group, ...]) -> tuple[int, Row]:
        """Choose a row that shows an image of the groups, else the fullest."""
        if len(fitting) == 1:
            return fitting[0]
        images = Row(groups).images(self.sizes)
        return max(
            fitting, key=lambda pair: (not images.isdisjoint(pair[1].images(self.sizes)), pair[0])
        )
