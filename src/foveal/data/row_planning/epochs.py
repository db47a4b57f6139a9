"""Weights of files -> which examples an epoch shows, which again, and in what order (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PATIENCE = 16
"""Prefix groups that wait for a step with room for them before the oldest is cut at a border."""

AT_ONCE = 2**12
"""Prefix groups that are looked at as numbers of Python's at once."""


@dataclass(frozen=True)
class Shown:
    """How often an epoch shows examples that stand one behind the other, as those of a file."""

    examples: int
    weight: float = 1.0

    @property
    def part(self) -> int:
        """Count the examples that an epoch shows once more than the others."""
        return int((self.weight - int(self.weight)) * self.examples + 0.5)

    @property
    def an_epoch(self) -> int:
        """Count what an epoch shows of them, repeats too."""
        return int(self.weight) * self.examples + self.part


def random_bits(*seeds: int) -> np.random.Philox:
    """Start a stream of its own; raw bits are what numpy promises to keep in every version."""
    return np.random.Philox(np.random.SeedSequence(seeds))


def shown_in_epoch(
    shown: Sequence[Shown], prefix_groups: NDArray[np.int32], seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the examples of an epoch, file by file.

    Where an epoch shows part of a file, the next one goes on behind it: however long a run is, each
    example of a file has been shown as often as any other, or once more. Examples of one prefix
    group are taken together but where a part ends.

    Args:
        shown: of each file.
        prefix_groups: (examples,) which of them share a prefix.
        seed: of the run.
        epoch: from 0.

    Returns:
        (shown,) numbers of examples, and for each in which round through its file it is shown.
    """
    nothing, first = np.zeros(0, np.int64), 0
    examples, rounds = [nothing], [nothing]
    for place, one in enumerate(shown):
        whole = int(one.weight)
        members = np.arange(first, first + one.examples)
        first += one.examples
        examples += [members] * whole
        rounds += [np.full(len(members), number) for number in range(whole)]
        if one.part:
            chosen = (epoch * one.part + np.arange(one.part)) % one.examples
            order = _mixed(prefix_groups[members], random_bits(seed, place, one.examples))
            examples.append(np.sort(members[order[chosen]]))
            rounds.append(np.full(one.part, whole))
    return np.concatenate(examples), np.concatenate(rounds)


def _mixed(prefix_groups: NDArray[np.int32], bits: np.random.Philox) -> NDArray[np.int64]:
    """Draw an order that keeps prefix groups together."""
    _, numbers = np.unique(prefix_groups, return_inverse=True)
    places = bits.random_raw(int(numbers.max()) + 1)
    return np.lexsort((bits.random_raw(len(numbers)), places[numbers]))


def shuffled(
    prefix_groups: NDArray[np.int32], examples_per_step: int, bits: np.random.Philox
) -> NDArray[np.int64]:
    """Draw prefix groups at random, and the examples within each."""
    counts = np.bincount(prefix_groups).astype(np.int32)
    drawn = np.argsort(bits.random_raw(len(counts)), kind="stable").astype(np.int32)
    places = np.empty(len(counts), np.int32)
    places[_whole_in_steps(drawn, counts, examples_per_step)] = np.arange(len(counts))
    return np.lexsort((bits.random_raw(len(prefix_groups)), places[prefix_groups]))


def _whole_in_steps(
    drawn: NDArray[np.int32], counts: NDArray[np.int32], examples_per_step: int
) -> NDArray[np.int32]:
    """Let a prefix group that a step's border would cut wait for a step that has room."""
    order, placed = np.empty(len(drawn), np.int32), 0
    waiting: list[tuple[int, int]] = []
    headroom = examples_per_step
    for start in range(0, len(drawn), AT_ONCE):
        block = drawn[start : start + AT_ONCE]
        sizes = counts[block]
        if not waiting and (sizes == 1).all():  # no border cuts these
            order[placed : placed + len(block)] = block
            placed += len(block)
            headroom = (headroom - len(block)) % examples_per_step or examples_per_step
            continue
        found: list[int] = []
        for comer in zip(block.tolist(), sizes.tolist(), strict=True):
            waiting.append(comer)
            while waiting:
                fits = next(
                    (at for at, (_, count) in enumerate(waiting) if count <= headroom), None
                )
                if fits is None and len(waiting) <= PATIENCE:
                    break
                prefix_group, count = waiting.pop(fits or 0)
                found.append(prefix_group)
                headroom = (headroom - count) % examples_per_step or examples_per_step
        order[placed : placed + len(found)] = found
        placed += len(found)
    order[placed:] = [prefix_group for prefix_group, _ in waiting]
    return order
