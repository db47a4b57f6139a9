"""Bundles of examples and their prices -> what each rank has to do in a step (pure)."""

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapreplace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORTH_SWAPPING, WORTH_PARTING = 0.99, 0.95
"""Shares that the larger load of two ranks must come down to; parting pays a prefix once more."""


class Member(NamedTuple):
    """Examples of a bundle that never part, their tokens behind the prefix, and what they cost."""

    examples: tuple[int, ...]
    tokens: int
    cost: float


@dataclass
class Bundle:
    """Examples of one prefix group that meet in a step: cheapest together, but free to part."""

    key: tuple[int, bool]
    prefix_tokens: int
    shared_cost: float
    """Price of prefix and crops, paid in every pass that holds a member."""

    headroom: int
    """Tokens that a pass has left beside the prefix."""

    members: list[Member]
    whole: bool = True
    """Whether these are the very members whose prefix was measured."""

    cost: float = field(init=False)

    def __post_init__(self) -> None:
        tokens = sum([member.tokens for member in self.members])
        passes = -(-tokens // self.headroom) if self.headroom > 0 else len(self.members)
        passes = min(max(passes, 1), len(self.members))
        self.cost = self.shared_cost * passes + sum([member.cost for member in self.members])

    def holding(self, members: list[Member]) -> "Bundle":
        """Hold other members behind the same prefix."""
        return Bundle(self.key, self.prefix_tokens, self.shared_cost, self.headroom, members, False)


@dataclass
class Share:
    """What one rank has to do in a step."""

    bundles: dict[tuple[int, bool], Bundle] = field(default_factory=dict)
    load: float = 0.0

    def put(self, bundle: Bundle) -> None:
        """Take a bundle in place of what was held of its prefix group."""
        before = self.bundles.pop(bundle.key, None)
        self.load += bundle.cost - (before.cost if before else 0.0)
        if bundle.members:
            self.bundles[bundle.key] = bundle


def balance(bundles: list[Bundle], world_size: int) -> list[Share]:
    """Give the costliest bundle to the least loaded rank, and so on; then trade."""
    shares = [Share() for _ in range(world_size)]
    for bundle in sorted(bundles, key=lambda bundle: -bundle.cost):
        min(shares, key=lambda share: share.load).put(bundle)
    # Each trade lowers the largest load and lifts none above it: none comes back, all end.
    while _lighten_heaviest(sorted(shares, key=lambda share: share.load)):
        pass
    return shares


def _lighten_heaviest(shares: list[Share]) -> bool:
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


def spread(costs: NDArray[np.float64], ranks: Sequence[int]) -> NDArray[np.int32]:
    """Give the costliest piece of work to the block of ranks with least to do for each, and so on.

    Args:
        costs: (pieces,)
        ranks: of each block.

    Returns:
        (pieces,) the block of each.
    """
    blocks = np.empty(len(costs), np.int32)
    loads = [(0.0, number) for number in range(len(ranks))]
    order = np.argsort(-costs, kind="stable")
    for chunk, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        load, number = loads[0]
        heapreplace(loads, (load + cost / ranks[number], number))
        blocks[chunk] = number
    return blocks


_Trade = tuple[float, list[Bundle], list[Bundle]]
"""Larger load after it, and what each of two ranks then holds of the bundles in question."""


def _partings(heavy: Share, light: Share, goal: float) -> Iterator[_Trade]:
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


def _swaps(heavy: Share, light: Share, goal: float) -> Iterator[_Trade]:
    """Bring the larger load below `goal` by changing a bundle for a cheaper one."""
    for bundle in heavy.bundles.values():
        for other in light.bundles.values():
            less = bundle.cost - other.cost
            load = max(heavy.load - less, light.load + less)
            if load < goal and bundle.key not in light.bundles and other.key not in heavy.bundles:
                yield load, [bundle.holding([]), other], [bundle, other.holding([])]
