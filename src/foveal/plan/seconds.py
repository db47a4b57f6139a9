"""A setup + the rows of an epoch + a machine -> seconds of a step, by kind (pure).

A ring moves (N - 1) / N of the bytes through each link to gather or to scatter, and twice that to
add up; across nodes, all of a node's processes share the node's own link.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from foveal.plan.epoch import Epoch, RowCounts
from foveal.plan.hardware import Hardware
from foveal.plan.model_costs.terms import PassCosts
from foveal.plan.model_costs.weights import FULL_BYTES
from foveal.plan.setup import Setup

OPTIMIZER_BYTES_A_NUMBER = 40
"""AdamW reads weight, gradient and moments and writes three of them; clipping reads and writes
gradients once more: 7 + 3 numbers of 4 bytes."""

RESTORED_BYTES_A_NUMBER = 43.0
"""What bringing a weight back from 4 bits costs, in bytes of bandwidth: from the published QLoRA
rows (docs/plan.md), 4.7e10 numbers a second where 2.04e12 bytes move."""

BUCKET_BYTES = 25_000_000
"""That PyTorch shares at a time."""

OVERLAP = 0.9
"""Share of a backward pass during which finished gradients can travel."""


@dataclass(frozen=True)
class Seconds:
    """Seconds of an optimizer step, by kind; those of the slowest rank."""

    tower: float
    decoder: float
    attention: float
    head: float
    elementwise: float
    """Norms, activations and sums: what moves numbers and multiplies no matrices."""

    recompute: float
    optimizer: float
    overhead: float
    communication_exposed: float
    loading_exposed: float
    communication_hidden: float
    """At the same time as the rest; not part of the total."""

    loading_hidden: float
    """Of the workers, behind the rest; not part of the total."""

    @property
    def total(self) -> float:
        """Of a step, from one to the next."""
        shown = [one.name for one in fields(self) if not one.name.endswith("_hidden")]
        return float(sum(getattr(self, name) for name in shown))


def step_seconds(
    setup: Setup,
    epoch: Epoch,
    hardware: Hardware,
    workers: int,
) -> Seconds:
    """Average a step over an epoch, each as slow as its slowest rank.

    Args:
        setup: of the run.
        epoch: planned for the world size of the setup.
        hardware: what it runs on.
        workers: that open images, of one process.
    """
    steps = [
        max(
            (rank_seconds(setup, rank, hardware, workers) for rank in step),
            key=lambda seconds: seconds.total,
        )
        for step in epoch.steps
    ]
    names = [one.name for one in fields(Seconds)]
    return Seconds(*(sum(getattr(step, name) for step in steps) / len(steps) for name in names))


def rank_seconds(
    setup: Setup,
    rows: Sequence[RowCounts],
    hardware: Hardware,
    workers: int,
) -> Seconds:
    """Time the rows of one rank behind one optimizer step."""
    once, costs = setup.costs_without_recompute, setup.costs
    multiplied = multiplying(once, setup, rows, hardware)
    tower, decoder, head, attention = multiplied
    recompute, before = 0.0, sum(multiplied)
    if costs is not once:
        recompute = sum(multiplying(costs, setup, rows, hardware))
        recompute = recompute - before if recompute > (1 + ROUNDED) * before else 0.0
    # Made once more where blocks are run again.
    moved = 1.0 if setup.recompute == "none" else 1.0 + FORWARD_SHARE
    elementwise = moved * moving(once, rows, hardware)
    parts = setup.shares if setup.engine in ("zero2", "fsdp2") else 1
    updated = setup.holdings.learnt / parts * OPTIMIZER_BYTES_A_NUMBER
    optimizer = updated / hardware.moved_bytes_per_second
    uses = 2 if setup.recompute == "none" else 3
    overhead = hardware.reached.pass_seconds * len(rows)
    overhead += len(rows) * copying(setup, uses, hardware)
    busy = tower + decoder + attention + head + elementwise + recompute + overhead
    passes = max(1, len(rows))
    forward_share = 1 / 4 if setup.recompute == "blocks" else 1 / 3
    hidden, exposed = exchange(
        setup,
        passes,
        busy / passes * forward_share,
        busy / passes * (1 - forward_share),
        hardware,
    )
    loading = opening(rows, hardware, workers)
    behind = busy + optimizer if workers else 0.0
    return Seconds(
        tower=tower,
        decoder=decoder,
        attention=attention,
        head=head,
        elementwise=elementwise,
        recompute=recompute,
        optimizer=optimizer,
        overhead=overhead,
        communication_exposed=exposed,
        loading_exposed=max(0.0, loading - behind),
        communication_hidden=hidden,
        loading_hidden=min(loading, behind),
    )


ROUNDED = 1e-6
"""Share by which two numbers that were solved for may differ and be meant as one."""

FORWARD_SHARE = 1 / 3
"""Of a pass forward and back, where it is not told apart."""


def multiplying(
    costs: PassCosts,
    setup: Setup,
    rows: Sequence[RowCounts],
    hardware: Hardware,
) -> tuple[float, float, float, float]:
    """Time the products of passes over rows: of the tower, decoder, head, and attention."""
    speed = hardware.matrix_flops[setup.precision]
    linear, fused = speed * hardware.reached.matrix, speed * hardware.reached.attention
    pairs = executed_pairs(setup, rows)
    return (
        _operations(costs, "vision", rows) / linear,
        _operations(costs, "language", rows) / linear,
        _operations(costs, "head", rows) / linear,
        costs.language.attention_of_pair * pairs / fused,
    )


def moving(costs: PassCosts, rows: Sequence[RowCounts], hardware: Hardware) -> float:
    """Time what moves numbers and multiplies none, of passes over rows, forward and back."""
    if not hardware.reached.moved:
        return 0.0
    moved = hardware.reached.moved * sum(costs.saved_bytes(row) for row in rows)
    return moved / hardware.moved_bytes_per_second


def opening(rows: Sequence[RowCounts], hardware: Hardware, workers: int) -> float:
    """Time the opening of the images of rows."""
    crops = sum(row.crops for row in rows)
    return crops * hardware.reached.crop_seconds / max(1, min(workers, hardware.cores))


def reading_seconds(setup: Setup, epoch: Epoch, hardware: Hardware, workers: int) -> float:
    """Time rows that are read forward alone, step by step, each as slow as its slowest rank.

    Args:
        setup: of the run.
        epoch: of the steps that are read.
        hardware: what it runs on.
        workers: that open images, of one process.
    """

    def of(rows: Sequence[RowCounts]) -> float:
        # The numbers that a step would keep are made as well, and let go.
        saved = moving(setup.costs_without_recompute, rows, hardware)
        busy = sum(multiplying(setup.costs_of_reading, setup, rows, hardware))
        busy += FORWARD_SHARE * (saved + hardware.reached.pass_seconds * len(rows))
        busy += len(rows) * copying(setup, 1, hardware)
        # Of what is brought together in passes, for each of both directions, half.
        gathered = traffic_of(setup, len(rows)).gathered_bytes / 2
        ring = replace(setup, nodes=1) if setup.is_cut_by_node else setup
        busy = max(busy, ring_seconds(gathered, ring, hardware))
        loading = opening(rows, hardware, workers)
        return max(busy, loading) if workers else busy + loading

    return sum(max(of(rank) for rank in step) for step in epoch.steps)


def _operations(costs: PassCosts, part: str, rows: Sequence[RowCounts]) -> float:
    operations = getattr(costs, part).operations
    return float(sum(operations.of(row) for row in rows))


def executed_pairs(setup: Setup, rows: Sequence[RowCounts]) -> float:
    """Count the pairs that attention looks at, seen or not; a flash kernel skips the unseen."""
    if setup.attention in ("sdpa", "eager"):
        return float(sum(row.tokens**2 for row in rows))
    if setup.attention == "blocks":
        # Behind a prefix, the whole rectangle is worked out and masked.
        return float(sum(row.pairs + row.branch_cells / 2 for row in rows))
    return float(sum(row.pairs for row in rows))


def copying(setup: Setup, uses: int, hardware: Hardware) -> float:
    """Seconds of a pass in which weights are copied to 16 bits, or brought back from 4, a use."""
    if setup.number_bytes == FULL_BYTES and not setup.holdings.four_bit:
        return 0.0
    width = FULL_BYTES + setup.number_bytes
    copied = setup.holdings.learnt_linear * width
    if setup.frozen_bytes == FULL_BYTES:
        copied += setup.holdings.frozen_linear * width * uses
    restored = setup.holdings.four_bit * RESTORED_BYTES_A_NUMBER * uses
    seconds = copied / hardware.reached.bandwidth + restored
    return seconds / hardware.bandwidth_bytes_per_second


# -- what processes share --------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """What one process shares behind one optimizer step."""

    gathered_bytes: float
    """Brought together in passes: fully sharded weights."""

    reduced_bytes: float
    """Added up over all; in a pass."""

    after_bytes: float
    """Brought together behind the optimizer, when there is nothing to hide behind."""

    across_bytes: float
    """Added up between the copies of nodes; once a step."""

    passes: int
    """That share; the rest is done alone."""


def traffic_of(setup: Setup, passes: int) -> Traffic:
    """Say what an engine moves; gradients travel as float32."""
    learnt = setup.holdings.learnt * FULL_BYTES
    whole = setup.holdings.numbers * FULL_BYTES
    if setup.world_size == 1:
        return Traffic(0, 0, 0, 0, 0)
    if setup.engine == "fsdp2":  # once for each direction, and gradients are cut in each pass
        in_blocks = setup.holdings.numbers - setup.holdings.outside_blocks.numbers
        whole -= in_blocks * (FULL_BYTES - setup.travelling_bytes)
        whole += setup.holdings.four_bit // 2
        across = 2.0 * learnt if setup.is_cut_by_node and setup.nodes > 1 else 0.0
        return Traffic(2.0 * whole * passes, 1.0 * learnt * passes, 0, across, passes)
    if setup.engine == "zero2":
        return Traffic(0, 1.0 * learnt * passes, 1.0 * learnt, 0, passes)
    return Traffic(0, 2.0 * learnt, 0, 0, 1)


def ring_seconds(moved_bytes: float, setup: Setup, hardware: Hardware) -> float:
    """Time one way round a ring of all processes."""
    world = setup.world_size
    if world == 1 or not moved_bytes:
        return 0.0
    share = moved_bytes * (world - 1) / world / hardware.reached.link
    inside = share / hardware.link_bytes_per_second if setup.gpus > 1 else 0.0
    if setup.nodes == 1:
        return inside
    # Large groups add up in trees: the way is as long as the tree is high.
    hops = 2 * math.log2(world) * max(1.0, moved_bytes / BUCKET_BYTES)
    between = share / hardware.node_link_bytes_per_second
    return max(inside, between) + hops * hardware.node_latency_seconds


def across_seconds(moved_bytes: float, setup: Setup, hardware: Hardware) -> float:
    """Time one way round as many rings as a node has processes, each with its share."""
    if not moved_bytes:
        return 0.0
    share = moved_bytes * (setup.nodes - 1) / setup.nodes  # of all rings, on the node's one link
    hops = 2 * math.log2(setup.nodes) * max(1.0, moved_bytes / setup.gpus / BUCKET_BYTES)
    link = hardware.node_link_bytes_per_second * hardware.reached.link
    return share / link + hops * hardware.node_latency_seconds


def exchange(
    setup: Setup,
    passes: int,
    forward_seconds: float,
    backward_seconds: float,
    hardware: Hardware,
) -> tuple[float, float]:
    """Work out what sharing costs beside the work that it hides behind: seconds hidden, and not.

    Args:
        setup: of the run.
        passes: of one process behind one optimizer step.
        forward_seconds: of one pass.
        backward_seconds: of one pass, layers that are run again included.
        hardware: whose links are used.
    """
    traffic = traffic_of(setup, passes)
    ring = replace(setup, nodes=1) if setup.is_cut_by_node else setup
    gathered = ring_seconds(traffic.gathered_bytes, ring, hardware)
    reduced = ring_seconds(traffic.reduced_bytes, ring, hardware)
    across = across_seconds(traffic.across_bytes, setup, hardware)
    after = ring_seconds(traffic.after_bytes, setup, hardware)
    room = OVERLAP * backward_seconds * traffic.passes
    if traffic.gathered_bytes:
        room += OVERLAP * forward_seconds * traffic.passes
    hidden = min(gathered + reduced, room)
    # In the last pass alone, and behind what each pass shares by itself.
    behind = min(across, OVERLAP * backward_seconds, room - hidden)
    return hidden + behind, gathered + reduced - hidden + across - behind + after
