"""A setup + the worst row -> bytes that one process holds at its worst moment, by kind (pure)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from foveal.plan.epoch import RowCounts
from foveal.plan.model_costs.weights import FULL_BYTES, Holdings
from foveal.plan.setup import Setup
from foveal.train.engines.zero2 import BUCKET_NUMBERS

SLACK = 0.05
"""Share of the device's memory that an allocator cannot use, for pieces that fit nowhere: an
assumption for steps of near-equal size; lengths that change much need more (docs/plan.md)."""

STEP_BYTES = 4
"""AdamW's count of steps of a tensor, which is not cut."""

CPU_SLACK = 0.68
"""Holes in glibc's heap with freed blocks kept (`machine.keep_freed_memory`), as a share of
what comes and goes, without adapters; `--measure` knows better."""

ADAPTER_SLACK, FOUR_BIT_SLACK = 1.85, 2.4
"""How many times as many holes small blocks of adapters leave, and weights brought back from 4
bits. All three reproduce what three sizes were seen to hold, see docs/plan.md."""

PREFETCHED_ROWS = 4
WORKER_BYTES = 150_000_000
"""Of a worker beside what it shares with its parent, measured on Linux."""


COMES_AND_GOES = (
    *("gradients_bytes", "tower_bytes", "decoder_bytes", "logits_bytes"),
    *("weight_copies_bytes", "workspace_bytes"),
)
"""What changes from moment to moment of a step."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process on its device at the moment when it holds most."""

    weights_bytes: int = 0
    adapters_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    tower_bytes: int = 0
    decoder_bytes: int = 0
    logits_bytes: int = 0
    weight_copies_bytes: int = 0
    """In 16 bits, that autocast made."""

    buckets_bytes: int = 0
    """Of the engine: what is shared, or brought together."""

    workspace_bytes: int = 0
    """Gradients on their way, and a layer that is run again."""

    base_bytes: int = 0
    """Of the process before there is a model: CUDA's context, or Python and its libraries."""

    slack_bytes: int = 0
    """Holes between blocks that come and go, which the allocator keeps."""

    moment: str = ""
    """When that is."""

    workers_bytes: int = 0
    """Host memory of the processes that open images; not part of the total."""

    @property
    def kinds(self) -> dict[str, int]:
        """Bytes of the device, by kind."""
        others = "moment", "workers_bytes"
        return {name: value for name, value in vars(self).items() if name not in others}

    @property
    def total_bytes(self) -> int:
        """All of the device."""
        return sum(self.kinds.values())

    @property
    def passing_bytes(self) -> int:
        """What comes and goes with a pass."""
        saved = self.tower_bytes + self.decoder_bytes + self.logits_bytes
        return saved + self.weight_copies_bytes + self.workspace_bytes


def shares_of(
    holdings: Holdings,
    engine: str,
    world_size: int,
    frozen_bytes: int = FULL_BYTES,
    optimizer: str = "adamw",
    travelling_bytes: int = FULL_BYTES,
) -> Memory:
    """Cut weights, gradients and moments as an engine does; weights that learn are float32.

    What the first process is left: FSDP2 cuts each tensor into whole rows, and it has most of them.
    """
    cut = world_size if engine == "fsdp2" else 1
    gradients, moments = holdings.learnt * FULL_BYTES, holdings.optimizer_bytes[optimizer]
    buckets = gradients if engine == "ddp" else 0  # PyTorch's are a copy of all gradients
    # AdamW alone can be cut.
    if engine == "zero2":
        # DeepSpeed cuts a group as one tensor of an even share for each, and keeps a copy of its
        # share of the weights; the optimizer moves that one.
        groups = holdings.learnt_groups
        gradients = sum(-(-one // (2 * world_size)) * 2 for one in groups) * FULL_BYTES
        moments = 3 * gradients + len(groups) * STEP_BYTES
        buckets = BUCKET_NUMBERS * FULL_BYTES
    if engine == "fsdp2":
        # A block while it runs and the next one, whole; what stands in no block, all the time; and
        # the gradients of what learns in both before they are cut.
        block, outside = holdings.largest_block, holdings.outside_blocks
        brought = 2 * block.gathered_bytes(travelling_bytes) + outside.gathered_bytes()
        buckets = brought + (block.learnt + outside.learnt) * FULL_BYTES
        gradients = holdings.learnt_share(cut) * FULL_BYTES
        learnt_tensors = sum(one.learns for one in holdings.tensors)
        moments = 2 * gradients + learnt_tensors * STEP_BYTES
    return Memory(
        weights_bytes=holdings.weights_bytes(frozen_bytes, cut),
        adapters_bytes=holdings.share("adapter", parts=cut) * FULL_BYTES,
        gradients_bytes=gradients,
        optimizer_bytes=moments,
        buckets_bytes=buckets,
    )


def estimate_memory(
    setup: Setup,
    row: RowCounts,
    rows_behind_step: int,
    workers: int,
    base_bytes: int,
    slack: float = 0.0,
) -> Memory:
    """Find the moment at which one process holds most, and what it holds then.

    Args:
        setup: of the run.
        row: the worst.
        rows_behind_step: most of one process; of more than one, gradients are there all the time.
        workers: that open images, of one process.
        base_bytes: of the process before there is a model.
        slack: holes of the allocator, as a share of what comes and goes, where freed blocks are
            kept and nothing has adapters.
    """
    slack *= slack_factor(setup)
    held = shares_of(
        setup.holdings,
        setup.engine,
        setup.shares,
        setup.frozen_bytes,
        setup.optimizer,
        setup.travelling_bytes,
    )
    held = replace(held, base_bytes=base_bytes, workers_bytes=_workers_bytes(setup, row, workers))
    moments = [
        replace(one, slack_bytes=int(slack * one.passing_bytes))
        for one in _moments(setup, row, held, rows_behind_step > 1)
    ]
    return max(moments, key=lambda memory: memory.total_bytes)


def slack_factor(setup: Setup) -> float:
    """Say how many times as many holes a setup leaves as one without adapters.

    None where it runs blocks again: freed blocks are handed back then (`Engine.spare_memory`).
    """
    if setup.recompute == "blocks":
        return 0.0
    if setup.holdings.four_bit:
        return FOUR_BIT_SLACK
    return ADAPTER_SLACK if setup.holdings.adapters else 1.0


def _moments(setup: Setup, row: RowCounts, held: Memory, accumulated: bool) -> Iterator[Memory]:
    """Say what is held at each moment of a step, beside what is held all the time."""
    costs, again = setup.costs, setup.recompute != "none"
    vision, language = costs.vision, costs.language
    tower, decoder = int(vision.saved_bytes.of(row)), int(language.saved_bytes.of(row))
    logits, loss_work = int(costs.head_bytes(row)), costs.logits_work_bytes(row)
    tower_work, decoder_work = (int(part.forward_work_bytes.of(row)) for part in (vision, language))
    tower_back, decoder_back = (
        int(part.backward_work_bytes.of(row)) for part in (vision, language)
    )
    pixels = int(2 * row.crops * costs.pixels_of_crop * FULL_BYTES)  # before and behind normalizing
    gradients = held.gradients_bytes
    before = gradients if accumulated else 0
    copies = copied_weights(setup, again)
    left = 0 if again else copies
    width, words = costs.head_sides
    outside = FULL_BYTES * width * words if before == 0 else 0
    head = before + min(outside, gradients)
    for moment, *amounts in (
        ("tower, forward", before, tower, 0, 0, 0, tower_work + pixels),
        ("decoder, forward", before, tower, decoder, 0, copies, decoder_work),
        ("loss, backward", before, tower, decoder, logits, left, loss_work),
        ("decoder, backward", head, tower, decoder, 0, left, decoder_back),
        ("tower, backward", gradients, tower, 0, 0, left // 8, tower_back),
        ("optimizer", gradients, 0, 0, 0, 0, 0),
    ):
        yield replace(held, moment=moment, **dict(zip(COMES_AND_GOES, amounts, strict=True)))


def copied_weights(setup: Setup, again: bool) -> int:
    """Bytes of the 16-bit copies of linear layers at the end of a forward pass.

    Autocast keeps those of weights that learn until the pass ends; those of frozen weights that are
    not held in 16 bits are kept for the backward pass alone, unless layers are run again.
    """
    if setup.number_bytes == FULL_BYTES:
        return 0
    copied = setup.holdings.learnt_linear
    if setup.frozen_bytes == FULL_BYTES and not again:
        copied += setup.holdings.frozen_linear
    return copied * setup.number_bytes


def _workers_bytes(setup: Setup, row: RowCounts, workers: int) -> int:
    waiting = PREFETCHED_ROWS * row.crops * setup.costs.pixels_of_crop
    return int(workers * (WORKER_BYTES + waiting))
