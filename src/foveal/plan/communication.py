"""Bytes to share + links -> seconds that ranks spend on it, hidden behind work or not (pure).

A ring moves (N - 1) / N of the bytes through each link to gather or to scatter, and twice that to
add up; across nodes, all of a node's processes share the node's own link.
"""

import math
from dataclasses import dataclass, replace

from foveal.plan.machines.hardware import Hardware
from foveal.plan.model_costs.weights import FULL_BYTES
from foveal.plan.setup import Setup

BUCKET_BYTES = 25_000_000
"""That PyTorch shares at a time."""

OVERLAP = 0.9
"""Share of a backward pass during which finished gradients can travel."""


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


@dataclass(frozen=True)
class ExchangeSeconds:
    """Seconds of one optimizer step."""

    hidden_seconds: float
    exposed_seconds: float


def traffic_of(setup: Setup, passes: int) -> Traffic:
    """Say what an engine moves; gradients travel as float32."""
    learnt = setup.holdings.learnt * FULL_BYTES
    whole = (setup.holdings.whole + setup.holdings.adapters) * FULL_BYTES
    if setup.world_size == 1:
        return Traffic(0, 0, 0, 0, 0)
    if setup.engine == "fsdp2":  # once for each direction, and gradients are cut in each pass
        outside = setup.holdings.outside_blocks.numbers
        in_blocks = setup.holdings.whole + setup.holdings.adapters - outside
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
) -> ExchangeSeconds:
    """Work out what sharing costs beside the work that it hides behind.

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
    return ExchangeSeconds(hidden + behind, gathered + reduced - hidden + across - behind + after)
