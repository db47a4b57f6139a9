"""Sizes of examples -> which of them share a step, a rank, a row and a prefix; opens no file."""

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveal.data.epochs import Shown, random_bits, shown_in_epoch

WORTH_SWAPPING, WORTH_PARTING = 0.99, 0.95
"""Shares that the larger load of two ranks must come down to; parting pays a prefix once more."""

PATIENCE = 16
"""Families that wait for a step with room for them before the oldest is cut at a border."""


@dataclass(frozen=True)
class Ragged:
    """Many short lists of whole numbers, end to end."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """(lists + 1,) Where each list starts, and where the last one ends."""

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> "Ragged":
        """Lay lists end to end."""
        kept = list(lists)
        offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        return cls(np.fromiter(chain.from_iterable(kept), np.int32, offsets[-1]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: Sequence[int]) -> list[list[int]]:
        """Read the lists at `indices`."""
        starts = self.offsets[np.asarray(indices, np.int64)].tolist()
        ends = self.offsets[np.asarray(indices, np.int64) + 1].tolist()
        return [self.values[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Sizes:
    """What planning needs to know of every example."""

    tokens: NDArray[np.int32]
    """(examples,) Whole length, image tokens counted in."""

    prompts: Ragged
    """First turn's prompt: token ids, and -(1 + image number) as the one entry of an image."""

    images: Ragged
    """Image numbers of all turns."""

    image_tokens: NDArray[np.int32]
    """(images,) Tokens that each distinct image costs."""

    image_crops: NDArray[np.int32]
    """(images,) Crops of it that the vision tower sees."""

    shown: tuple[Shown, ...] = ()
    """How often an epoch shows the examples, file by file; empty: each once."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.prompts) == len(self.images):
            raise ValueError(
                f"{len(self.tokens)} lengths, {len(self.prompts)} prompts and "
                f"{len(self.images)} lists of images do not belong together"
            )


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


def families(prompts: Ragged) -> NDArray[np.int64]:
    """Number the examples so that equal numbers mean: the same up to the last image of the prompt.

    An example whose prompt shows no image has a number of its own.
    """
    entries, owners = _image_entries(prompts)
    ends = prompts.offsets[:-1].copy()
    np.maximum.at(ends, owners, entries + 1)
    numbers: dict[bytes | int, int] = {}
    # A dictionary finds by hash and then compares the whole beginning: nothing is guessed.
    beginnings = (
        prompts.values[start:end].tobytes() or example
        for example, (start, end) in enumerate(zip(prompts.offsets, ends, strict=False))
    )
    found = (numbers.setdefault(beginning, len(numbers)) for beginning in beginnings)
    return np.fromiter(found, np.int64, len(prompts))


def _image_entries(prompts: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find where images stand in the values, and in which prompt that is."""
    entries = np.flatnonzero(prompts.values < 0)
    return entries, np.searchsorted(prompts.offsets, entries, side="right") - 1


def _common_run(prompts: Sequence[list[int]]) -> int:
    """Count the entries that all prompts begin with."""
    first, last = min(prompts), max(prompts)  # in dictionary order all others lie between them
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(last)))


def _whole_in_steps(
    drawn: NDArray[np.int64], counts: NDArray[np.int64], examples_per_step: int
) -> list[int]:
    """Let a family that a step's border would cut wait a little for a step that has room."""
    order: list[int] = []
    waiting: list[tuple[int, int]] = []
    room = examples_per_step
    for comer in zip(drawn.tolist(), counts[drawn].tolist(), strict=True):
        waiting.append(comer)
        while waiting:
            fits = next((at for at, (_, count) in enumerate(waiting) if count <= room), None)
            if fits is None and len(waiting) <= PATIENCE:
                break
            family, count = waiting.pop(fits or 0)
            order.append(family)
            room = (room - count) % examples_per_step or examples_per_step
    return order + [family for family, _ in waiting]


class _Member(NamedTuple):
    """An example of a bundle, its tokens behind the prefix, and what they cost."""

    example: int
    tokens: int
    cost: float


@dataclass
class _Bundle:
    """Examples of one family that meet in a step: cheapest together, but free to part."""

    key: tuple[int, bool]
    prefix_tokens: int
    shared_cost: float
    """Price of prefix and crops, paid in every pass that holds a member."""

    room: int
    """Tokens that a pass has left beside the prefix."""

    members: list[_Member]
    whole: bool = True
    """Whether these are the very members whose prefix was measured."""

    cost: float = field(init=False)

    def __post_init__(self) -> None:
        tokens = sum([member.tokens for member in self.members])
        passes = -(-tokens // self.room) if self.room > 0 else len(self.members)
        passes = min(max(passes, 1), len(self.members))
        self.cost = self.shared_cost * passes + sum([member.cost for member in self.members])

    def holding(self, members: list[_Member]) -> "_Bundle":
        return _Bundle(self.key, self.prefix_tokens, self.shared_cost, self.room, members, False)


@dataclass
class _Share:
    """What one rank has to do in a step."""

    bundles: dict[tuple[int, bool], _Bundle] = field(default_factory=dict)
    load: float = 0.0

    def put(self, bundle: _Bundle) -> None:
        before = self.bundles.pop(bundle.key, None)
        self.load += bundle.cost - (before.cost if before else 0.0)
        if bundle.members:
            self.bundles[bundle.key] = bundle


def _deal(bundles: list[_Bundle], world_size: int) -> list[_Share]:
    """Give the costliest bundle to the least loaded rank, and so on; then trade."""
    shares = [_Share() for _ in range(world_size)]
    for bundle in sorted(bundles, key=lambda bundle: -bundle.cost):
        min(shares, key=lambda share: share.load).put(bundle)
    # Each trade lowers the largest load and lifts none above it: none comes back, all end.
    while _lighten_heaviest(sorted(shares, key=lambda share: share.load)):
        pass
    return shares


def _lighten_heaviest(shares: list[_Share]) -> bool:
    """Trade with the least loaded rank that takes enough; false if there is none."""
    heavy, mean = shares[-1], sum(share.load for share in shares) / len(shares)
    swap_goal, parting_goal = heavy.load * WORTH_SWAPPING, heavy.load * WORTH_PARTING
    for light in shares[:-1] if mean < swap_goal else ():
        trades = [*_partings(heavy, light, parting_goal), *_swaps(heavy, light, swap_goal)]
        if trades:
            _, to_heavy, to_light = min(trades, key=lambda trade: trade[0])
            for bundle in to_heavy:
                heavy.put(bundle)
            for bundle in to_light:
                light.put(bundle)
            return True
    return False


_Trade = tuple[float, list[_Bundle], list[_Bundle]]
"""Larger load after it, and what each of two ranks then holds of the bundles in question."""


def _partings(heavy: _Share, light: _Share, goal: float) -> Iterator[_Trade]:
    """Bring the larger load below `goal` by handing some members of a bundle over."""
    for bundle in heavy.bundles.values():
        there = light.bundles.get(bundle.key)
        members, cost = (there.members, there.cost) if there else ([], 0.0)
        entry = 0.0 if there else bundle.shared_cost
        if heavy.load + light.load + entry >= 2 * goal:
            continue
        gap = heavy.load - light.load - entry
        near = bisect(list(accumulate([member.cost for member in bundle.members])), gap / 2)
        for count in range(max(near, 1), min(near + 1, len(bundle.members)) + 1):
            kept = bundle.holding(bundle.members[count:])
            given = bundle.holding(members + bundle.members[:count])
            load = max(heavy.load - bundle.cost + kept.cost, light.load - cost + given.cost)
            if load < goal:
                yield load, [kept], [given]


def _swaps(heavy: _Share, light: _Share, goal: float) -> Iterator[_Trade]:
    """Bring the larger load below `goal` by changing a bundle for a cheaper one."""
    for bundle in heavy.bundles.values():
        for other in light.bundles.values():
            less = bundle.cost - other.cost
            load = max(heavy.load - less, light.load + less)
            if load < goal and bundle.key not in light.bundles and other.key not in heavy.bundles:
                yield load, [bundle.holding([]), other], [bundle, other.holding([])]


class Plan:
    """Every step of a run; a pure function of its arguments, so ranks agree without talking."""

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
        files = sizes.shown or (Shown(len(sizes.tokens)),)
        self.steps_per_epoch = -(-sum(file.an_epoch for file in files) // examples_per_step)
        self._latest_order: tuple[int, NDArray[np.int64]] | None = None
        self._families = families(sizes.prompts)
        self._long = sizes.tokens > (long_context_tokens or np.inf)
        # Of each example: tokens that the images of its prompt add to their entries, the price
        # of the crops of those images, and that of the images of later turns.
        entries, owners = _image_entries(sizes.prompts)
        shown = -1 - sizes.prompts.values[entries]
        count = len(sizes.tokens)
        self._expansion = np.bincount(owners, sizes.image_tokens[shown] - 1, count)
        self._crops = np.bincount(owners, costs.crop * sizes.image_crops[shown], count)
        crops = costs.crop * sizes.image_crops[sizes.images.values]
        owners = np.repeat(np.arange(count), np.diff(sizes.images.offsets))
        self._later_crops = np.bincount(owners, crops, count) - self._crops

    def examples(self, step: int) -> NDArray[np.int64]:
        """List the examples of a step, whether or not they share images."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._latest_order is None or self._latest_order[0] != epoch:
            self._latest_order = (epoch, self._epoch_order(epoch))
        start = place * self.examples_per_step
        return self._latest_order[1][start : start + self.examples_per_step]

    def step(self, index: int) -> Step:
        """Plan a step, counted over all epochs; needs none of the steps before it."""
        shares = _deal(self._bundles(self.examples(index)), self.world_size)
        ranks = [self._rows(share) for share in shares]
        passes = max(map(len, ranks))
        return Step(tuple(rows + (Row(),) * (passes - len(rows)) for rows in ranks))

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """Draw families at random, and the examples within each."""
        examples, families = np.arange(len(self._families)), self._families
        if self.sizes.shown:
            examples, rounds = shown_in_epoch(self.sizes.shown, families, self.seed, epoch)
            # What is shown again meets its first showing no more than any other example.
            apart = families[examples] * (rounds.max() + 1) + rounds
            families = np.unique(apart, return_inverse=True)[1]
        if self.order == "as_is":
            return examples
        bits = random_bits(self.seed, epoch)
        counts = np.bincount(families)
        drawn = np.argsort(bits.random_raw(len(counts)), kind="stable")
        places = np.empty(len(counts), np.int64)
        places[_whole_in_steps(drawn, counts, self.examples_per_step)] = np.arange(len(counts))
        return examples[np.lexsort((bits.random_raw(len(families)), places[families]))]

    def _bundles(self, examples: NDArray[np.int64]) -> list[_Bundle]:
        """Put the examples of a step together by family; a long one never joins a short one."""
        columns = (examples, self.sizes.tokens[examples], self._later_crops[examples])
        members = map(_Member, *[column.tolist() for column in columns])
        keys = zip(self._families[examples].tolist(), self._long[examples].tolist(), strict=True)
        together: dict[tuple[int, bool], list[_Member]] = {}
        for key, member in zip(keys, members, strict=True):
            together.setdefault(key, []).append(member)
        grouped = [member.example for some in together.values() for member in some]
        prompts = iter(self.sizes.prompts.take(grouped if self.share_images else []))
        return [
            self._bundle(key, some, list(islice(prompts, len(some))))
            for key, some in together.items()
        ]

    def _bundle(
        self, key: tuple[int, bool], members: list[_Member], prompts: list[list[int]]
    ) -> _Bundle:
        """Measure the prefix of members that have none yet, and price what comes behind it."""
        prefix = self._prefix_tokens(members[0].example, prompts) if prompts else 0
        behind = [
            _Member(example, tokens - prefix, cost + self.costs.text(tokens - prefix, prefix))
            for example, tokens, cost in members
        ]
        shared_cost = self.costs.text(prefix) + float(self._crops[members[0].example])
        return _Bundle(key, prefix, shared_cost, self.tokens_per_pass - prefix, behind)

    def _prefix_tokens(self, example: int, prompts: list[list[int]]) -> int:
        """Count the tokens that prompts of one family begin with; `example` is one of it."""
        if len(prompts) == 1:
            return int(self.sizes.tokens[example])
        return _common_run(prompts) + int(self._expansion[example])

    def _groups(self, bundle: _Bundle) -> Iterator[tuple[int, Group]]:
        """Cut a bundle into groups that keep to the budget, with their tokens."""
        pieces: list[list[_Member]] = []
        room = 0
        for member in bundle.members:
            if not (pieces and self.share_images and member.tokens <= room):
                pieces.append([])
                room = bundle.room
            pieces[-1].append(member)
            room -= member.tokens
        for piece in pieces:
            examples = tuple([member.example for member in piece])
            prefix = bundle.prefix_tokens
            if len(piece) == 1:
                prefix += piece[0].tokens
            elif not bundle.whole or len(pieces) > 1:
                prefix = self._prefix_tokens(examples[0], self.sizes.prompts.take(examples))
            longer = prefix - bundle.prefix_tokens
            tokens = prefix + sum([member.tokens - longer for member in piece])
            yield tokens, Group(examples, prefix)

    def _rows(self, share: _Share) -> tuple[Row, ...]:
        """Pack a rank's groups: the longest first, beside its images, else where it fits best."""
        groups = [group for bundle in share.bundles.values() for group in self._groups(bundle)]
        rows: list[tuple[int, Row]] = []
        for tokens, group in sorted(groups, key=lambda pair: -pair[0]):
            fitting = [pair for pair in rows if pair[0] + tokens <= self.tokens_per_pass]
            used, row = self._best(fitting, group) if fitting else (0, Row())
            if fitting:
                rows.remove((used, row))
            rows.append((used + tokens, Row((*row.groups, group))))
        # Sharded ranks wait for each other in every pass: the n-th passes should be alike.
        return tuple(row for _, row in sorted(rows, key=lambda pair: -pair[0]))

    def _best(self, fitting: list[tuple[int, Row]], group: Group) -> tuple[int, Row]:
        """Choose a row that shows an image of the group, else the fullest."""
        if len(fitting) == 1:
            return fitting[0]
        images = Row((group,)).images(self.sizes)
        return max(
            fitting, key=lambda pair: (not images.isdisjoint(pair[1].images(self.sizes)), pair[0])
        )
