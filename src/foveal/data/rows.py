"""Sizes of examples -> which of them share a step, a rank, a row and a prefix; opens no file."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import chain, islice, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveal.data.encoded.column_files import digest_of, kept_columns
from foveal.data.row_planning.balance import Bundle, Member, Share, balance, spread
from foveal.data.row_planning.epochs import Shown, random_bits, shown_in_epoch, shuffled
from foveal.data.row_planning.groups import TOKENS_ALONE, Costs, Group, Row, Sizes, Step, common_run

RANKS_OF_A_BLOCK = 8
"""Ranks that a step is balanced over by example; over more, whole prefix groups are first by block,
and each plans its own block alone: what a rank plans does not grow with their number."""

PART_OF_A_BLOCK = 0.25
"""Share of a block's work above which a prefix group is cut before it is placed."""

WORTH_KEEPING = 100_000
"""Examples whose order is worth a file for all processes."""

ORDERS_KEPT = 4
"""Epochs whose orders stay on the disk, 4 bytes an example each."""


@dataclass(eq=False)
class RowPlanner:
    """Every step of a run; a pure function of its arguments, so ranks agree without talking.

    Answers that stand in a set never part: they share a row, however large it is.
    """

    sizes: Sizes
    _: KW_ONLY
    examples_per_step: int
    tokens_per_pass: int
    world_size: int = 1
    seed: int = 0
    share_images: bool = True
    order: Literal["shuffled", "as_is"] = "shuffled"
    long_context_tokens: int | None = None
    costs: Costs = TOKENS_ALONE

    def __post_init__(self) -> None:
        sizes = self.sizes
        if not len(sizes.tokens):
            raise ValueError("a plan needs at least one example")
        files = sizes.shown or (Shown(sizes.num_sets),)
        self.steps_per_epoch = -(-sum(file.an_epoch for file in files) // self.examples_per_step)
        self._latest_order: tuple[int, NDArray[np.int32]] | None = None
        self._border = self.long_context_tokens or np.inf
        # Of each set, what planning asks of an example.
        firsts = sizes.firsts
        self._prefix_groups, self._begun = (
            sizes.prefix_groups[firsts],
            sizes.beginning_tokens[firsts],
        )
        self._crops, self._later_crops = sizes.crops[firsts], sizes.later_crops[firsts]
        self._tokens = self._longest = self._shortest = sizes.tokens
        if sizes.sets is not None:
            tokens, starts = sizes.tokens, sizes.sets[:-1]
            self._tokens = np.add.reduceat(tokens, starts)
            self._longest = np.maximum.reduceat(tokens, starts)
            self._shortest = np.minimum.reduceat(tokens, starts)
        blocks = -(-self.world_size // RANKS_OF_A_BLOCK)
        cuts = [self.world_size * block // blocks for block in range(blocks + 1)]
        self._first_ranks = cuts[:-1]
        self._ranks = [end - start for start, end in pairwise(cuts)]

    def examples(self, step: int) -> NDArray[np.int32]:
        """List the examples of a step, whether or not they share images."""
        if self.sizes.sets is None:
            return self._sets(step)
        members = self.sizes.members(self._sets(step))
        return np.fromiter(chain.from_iterable(members), np.int32)

    def _sets(self, step: int) -> NDArray[np.int32]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._latest_order is None or self._latest_order[0] != epoch:
            self._latest_order = (epoch, self._epoch_order(epoch))
        start = place * self.examples_per_step
        return self._latest_order[1][start : start + self.examples_per_step]

    def step(self, index: int) -> Step:
        """Plan a step, counted over all epochs; needs none of the steps before it."""
        shares = zip(self._blocks(index), self._ranks, strict=True)
        ranks = [rows for sets, number in shares for rows in self._balance(sets, number)]
        passes = max(map(len, ranks))
        return Step(tuple(rows + (Row(),) * (passes - len(rows)) for rows in ranks))

    def rows_of(self, index: int, rank: int) -> tuple[Row, ...]:
        """Plan what one rank does in a step, without the rows of ranks that are not near it.

        Where `is_agreed_upon`, other ranks may have more rows, and have to say so.
        """
        block = bisect_right(self._first_ranks, rank) - 1
        balanced = self._balance(self._blocks(index)[block], self._ranks[block])
        rows, passes = balanced[rank - self._first_ranks[block]], max(map(len, balanced))
        return rows + (Row(),) * (passes - len(rows))

    @property
    def is_agreed_upon(self) -> bool:
        """Whether ranks have to ask each other how many passes a step has."""
        return len(self._ranks) > 1

    def _balance(self, sets: NDArray[np.int32], ranks: int) -> list[tuple[Row, ...]]:
        """Balance sets over ranks that are near each other, one by one where it pays."""
        return [self._rows(share) for share in balance(self._bundles(sets), ranks)]

    def _blocks(self, index: int) -> list[NDArray[np.int32]]:
        """Share the sets of a step out to blocks of ranks, by what they will about cost."""
        sets = self._sets(index)
        if len(self._ranks) == 1:
            return [sets]
        places = self._places(sets)
        return [sets[places == block] for block in range(len(self._ranks))]

    def _places(self, sets: NDArray[np.int32]) -> NDArray[np.int32]:
        """Give each set a block; a prefix group is cut where it is much of a block's work."""
        costs, counts = self.costs, self.sizes.counts(sets)
        tokens = self._tokens[sets].astype(np.float64)
        is_long = self._longest[sets] > self._border
        keys = 2 * self._prefix_groups[sets].astype(np.int64) + is_long
        _, firsts, prefix_group = np.unique(keys, return_index=True, return_inverse=True)
        several = (np.bincount(prefix_group) > 1)[prefix_group] | (counts > 1)
        known = self._begun[sets] if self.share_images else np.zeros(len(tokens))
        prefix = np.where(several, known, tokens * self.share_images)
        own = costs.text(tokens - counts * prefix, prefix)
        own += costs.crop * self._later_crops[sets]
        shared = costs.text(prefix) + costs.crop * self._crops[sets]
        # Cut where a prefix group's work, member by member, passes a border.
        most = PART_OF_A_BLOCK * (own.sum() + shared[firsts].sum()) / len(self._ranks)
        order = np.argsort(prefix_group, kind="stable")
        before = np.cumsum(own[order]) - own[order]
        starts = before[np.concatenate([[0], np.cumsum(np.bincount(prefix_group))[:-1]])]
        chunks = np.empty(len(sets), np.int64)
        chunks[order] = (before - starts[prefix_group[order]]) // most
        chunks += prefix_group * (chunks.max() + 1)
        _, firsts, chunk = np.unique(chunks, return_index=True, return_inverse=True)
        return spread(np.bincount(chunk, own) + shared[firsts], self._ranks)[chunk]

    def _epoch_order(self, epoch: int) -> NDArray[np.int32]:
        """List the sets of an epoch; one process of a machine works it out."""
        if self.sizes.folder is None or len(self.sizes.tokens) < WORTH_KEEPING:
            return self._draw(epoch)
        said = (self.seed, epoch, self.examples_per_step, self.order, self.sizes.shown)
        name = digest_of(repr(said).encode(), 1).hex()
        place = self.sizes.folder / f"order-{name}"
        return kept_columns(place, lambda: [{"order": self._draw(epoch)}], ORDERS_KEPT)["order"]

    def _draw(self, epoch: int) -> NDArray[np.int32]:
        prefix_groups = self._prefix_groups
        examples = np.arange(len(prefix_groups), dtype=np.int32)
        if self.sizes.shown:
            shown, rounds = shown_in_epoch(self.sizes.shown, prefix_groups, self.seed, epoch)
            # What is shown again meets its first showing no more than any other example.
            apart = prefix_groups[shown].astype(np.int64) * (rounds.max() + 1) + rounds
            prefix_groups = np.unique(apart, return_inverse=True)[1].astype(np.int32)
            examples = shown.astype(np.int32)
        if self.order == "as_is":
            return examples
        return examples[
            shuffled(prefix_groups, self.examples_per_step, random_bits(self.seed, epoch))
        ]

    def _bundles(self, sets: NDArray[np.int32]) -> list[Bundle]:
        """Put the sets of a step together by prefix group; no long one joins a short one."""
        longs = self._longest[sets] > self._border
        mixed = (longs & (self._shortest[sets] <= self._border)).tolist()
        later = self.costs.crop * self._later_crops[sets]
        columns = self._tokens[sets].tolist(), later.tolist()
        members = map(Member, self.sizes.members(sets), *columns)
        keys = zip(self._prefix_groups[sets].tolist(), longs.tolist(), strict=True)
        together: dict[tuple[int, bool], list[Member]] = {}
        for key, member, is_mixed in zip(keys, members, mixed, strict=True):
            # One that is long and short shares nothing, not even within: it has no group.
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
        crops = self.costs.crop * int(self.sizes.crops[first])
        shared_cost = self.costs.text(prefix) + crops
        return Bundle(key, prefix, shared_cost, self.tokens_per_pass - prefix, behind)

    def _price(self, examples: tuple[int, ...], prefix: int) -> float:
        """Price what examples have behind a prefix."""
        tokens = [int(self.sizes.tokens[one]) - prefix for one in examples]
        return float(sum([self.costs.text(one, prefix) for one in tokens]))

    def _prefix_tokens(self, example: int, prompts: list[list[int]]) -> int:
        """Count the tokens that prompts of a prefix group begin with; `example` is in it."""
        if len(prompts) == 1:
            return int(self.sizes.tokens[example])
        return common_run(prompts) + int(self.sizes.extra_tokens[example])

    def _groups(self, bundle: Bundle) -> Iterator[tuple[int, tuple[Group, ...]]]:
        """Cut a bundle into groups that keep to the budget, with the tokens of those that meet."""
        shares = self._shares(bundle.key)
        chunks: list[list[Member]] = []
        headroom = 0
        for member in bundle.members:
            if not (chunks and shares and member.tokens <= headroom):
                chunks.append([])
                headroom = bundle.headroom
            chunks[-1].append(member)
            headroom -= member.tokens
        for chunk in chunks:
            examples = tuple(chain.from_iterable([member.examples for member in chunk]))
            if not shares:
                alone = [Group((one,), int(self.sizes.tokens[one])) for one in examples]
                yield sum(group.prefix_tokens for group in alone), tuple(alone)
                continue
            prefix = bundle.prefix_tokens
            if len(examples) == 1:
                prefix += chunk[0].tokens
            elif not bundle.whole or len(chunks) > 1:
                prefix = self._prefix_tokens(examples[0], self.sizes.prompts.take(examples))
            longer = prefix - bundle.prefix_tokens
            behind = sum([member.tokens for member in chunk]) - longer * len(examples)
            yield prefix + behind, (Group(examples, prefix),)

    def _rows(self, share: Share) -> tuple[Row, ...]:
        """Pack a rank's groups: the longest first, beside its images, else where it fits best."""
        chunks = [chunk for bundle in share.bundles.values() for chunk in self._groups(bundle)]
        rows: list[tuple[int, Row]] = []
        for tokens, groups in sorted(chunks, key=lambda pair: -pair[0]):
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
