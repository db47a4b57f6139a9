"""A line of the published table -> the memory and speed that arithmetic gives for it (pure).

The recipe's way, as its scripts are set up: one example a pass, crops padded to 17, all 24 tower
layers, every layer recomputed, logits at every position in float32. Full and frozen training run
under DeepSpeed ZeRO-2 (buckets of 5e8 numbers, twice) with weights in 16 bits; adapters under DDP,
with weights in float32 and autocast where attention is eager, in bf16 where it is flash.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from foveal_bench.operations import Operations, useful_operations
from published_table import (
    A100,
    EXAMPLES_PER_STEP,
    NUM_CROPS,
    RANK,
    TOKENS,
    PublishedRow,
)

from foveal.config import LoraSettings
from foveal.models.phi3_vision.seam import FAMILY as PHI3_VISION
from foveal.plan.epoch import count_groups
from foveal.plan.hardware import GB, Hardware, find_hardware
from foveal.plan.model_costs.asked import AskedModel
from foveal.plan.model_costs.weights import QUANTIZED_BLOCK, QUANTIZED_GROUP
from foveal.plan.model_costs.work import Ask
from foveal.plan.question import published_model

FOUR_BIT_BYTES = 0.5 + (1 + 4 / QUANTIZED_GROUP) / QUANTIZED_BLOCK
"""Of a weight in 4 bits whose scales are held in 8: 4.127 bits."""

CROPS = NUM_CROPS + 1
TEXT_TOKENS = 60
EAGER_FORWARD_BYTES, EAGER_BACKWARD_BYTES = 24, 36
"""Read and written for each pair and head. Forward: scores 2, divided 4, masked 4, softmax in
float32 6, rounded 6, used 2; backward: the same steps the other way, and both products."""

EAGER_TRANSIENT_BYTES = 30
"""Of each pair and head of one layer, at one time, in its backward pass: scores, mask,
probabilities in float32 and rounded (12), the gradients of each (12), and softmax's own (6)."""

SHARDED_BYTES = 22
"""Of a learnt number, cut over all ranks: a float32 weight 4, moments 8, gradients 2, the same in
float32 4, and AdamW's square root 4."""


@dataclass(frozen=True)
class Constants:
    """What shapes cannot say, fitted on every other row of the table."""

    matrix_a100: float
    """Share of the matrix speed, with all that goes on around products."""

    matrix_v100: float
    eager_bandwidth: float
    """Share of the bandwidth that element-wise passes of eager attention reach."""

    restored_per_second: float
    """4-bit weights brought back to 16 bits, numbers a second on an A100."""

    link_a100: float
    """Share of the maker's speed of links between nodes; each cluster has a network of its own, and
    the source names neither."""

    link_v100: float

    context_gb: float
    """Of CUDA and NCCL."""

    zero_slack_gb: float
    """Beyond its buckets, where every gradient passes through ZeRO-2."""

    eager_slack: float
    """Memory that the allocator holds beside each byte of eager attention's transients, whose
    sizes change with every example; as long as the card has room. ZeRO-2's slack serves it too."""


CONSTANTS = Constants(
    matrix_a100=0.3482,
    matrix_v100=0.4872,
    eager_bandwidth=0.5577,
    restored_per_second=47200000000.0,
    link_a100=1.0,
    link_v100=0.04745,
    context_gb=2.0,
    zero_slack_gb=8.09,
    eager_slack=2.542,
)
"""What `benchmarks/fit_published.py` finds, rounded; a test runs it again."""


@dataclass(frozen=True)
class RowPrediction:
    """What arithmetic gives for a row."""

    images_per_second: float
    memory_gb: float


@cache
def published(strategy: str) -> AskedModel:
    """Take the published model, to be asked what it holds and multiplies."""
    config, processor = published_model(NUM_CROPS)
    return AskedModel(config, PHI3_VISION, processor, strategy, LoraSettings(rank=RANK))


def predict_row(
    row: PublishedRow,
    constants: Constants,
    decoder_learns: bool = True,
) -> RowPrediction:
    """Predict a row.

    Args:
        row: how it was run.
        constants: see there.
        decoder_learns: false: as frozen rows were printed, with a decoder that gets no gradient.
    """
    hardware = find_hardware(row.gpu)
    seconds = row_step_seconds(row, constants, hardware, decoder_learns)
    memory = memory_gb(row, constants, hardware, decoder_learns)
    return RowPrediction(EXAMPLES_PER_STEP / seconds, memory)


def row_step_seconds(
    row: PublishedRow,
    constants: Constants,
    hardware: Hardware,
    decoder_learns: bool,
) -> float:
    """Time an optimizer step of 64 examples."""
    holdings = published(row.strategy).holdings
    share = constants.matrix_a100 if row.gpu == A100 else constants.matrix_v100
    speed = hardware.matrix_flops["fp16"] * share
    bandwidth = hardware.bandwidth_bytes_per_second * constants.eager_bandwidth
    decoder_learns = decoder_learns or row.strategy != "frozen_vision"
    useful, again = operations_of_pass(row, decoder_learns)
    example = (useful + again) / speed
    tower, decoder = attention_pairs()
    if not row.flash:
        for pairs, learns in ((tower, row.tower_learns), (decoder, decoder_learns)):
            moved = EAGER_FORWARD_BYTES
            if learns:
                moved += EAGER_FORWARD_BYTES + EAGER_BACKWARD_BYTES
            example += pairs * moved / bandwidth
    uses = 3 if decoder_learns else 1
    if row.strategy == "qlora":
        example += uses * holdings.four_bit / constants.restored_per_second
    elif row.strategy == "lora" and not row.flash:
        example += uses * holdings.frozen_linear * (4 + 2) / bandwidth
    passes = EXAMPLES_PER_STEP / row.gpus
    parts = 1 if "lora" in row.strategy else row.gpus
    optimizer = holdings.learnt / parts * 40 / bandwidth
    return passes * example + optimizer + exposed_seconds(row, constants, hardware, example)


def operations_of_pass(row: PublishedRow, decoder_learns: bool) -> tuple[float, float]:
    """Count useful operations of one example, and those that are done again."""
    forward = operations_of("full", row.flash, goes_back=False)
    useful = forward  # also what a frozen tower leaves where no decoder layer learns
    if decoder_learns:
        learns = "lora" if row.strategy == "qlora" else row.strategy
        useful = operations_of(learns, row.flash)
    # The tower's last layer is run though nobody reads it: 24 of 23.
    tower = published("full").config.vision_config
    again = forward.tower / (tower.num_hidden_layers - 1)
    if row.tower_learns:
        again += forward.tower
    if decoder_learns:
        again += forward.decoder
    return useful.total, again


@cache
def operations_of(strategy: str, flash: bool, goes_back: bool = True) -> Operations:
    """Ask the model what one example multiplies; eager attention looks at the whole square."""
    model = published(strategy) if goes_back else published(strategy).reading
    counts = count_groups(
        [(TOKENS, [])],
        np.array([TOKENS - TEXT_TOKENS]),
        np.array([CROPS]),
        examples=1,
        targets=TOKENS,
    )
    counts = counts if flash else replace(counts, pairs=TOKENS**2)
    return useful_operations(model.costs(Ask("float32", "flex", "none")), counts)


def attention_pairs() -> tuple[float, float]:
    """Count pairs of all layers and heads of an example: the tower's, the decoder's."""
    config = published("full").config
    tower = config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2 + 1
    return (
        float(tower.num_hidden_layers * tower.num_attention_heads * CROPS * patches**2),
        float(config.num_hidden_layers * config.num_attention_heads * TOKENS**2),
    )


def exposed_seconds(
    row: PublishedRow,
    constants: Constants,
    hardware: Hardware,
    example_seconds: float,
) -> float:
    """Time what ZeRO-2 shares between nodes beyond what backward passes hide."""
    holdings = published(row.strategy).holdings
    if row.nodes == 1:
        inside = 2.0 * holdings.learnt / hardware.link_bytes_per_second
        return inside if "lora" not in row.strategy else 0.0
    reached = constants.link_a100 if row.gpu == A100 else constants.link_v100
    between = hardware.node_link_bytes_per_second * reached
    share = 2.0 * holdings.learnt * (row.gpus - 1) / row.gpus / between
    passes = EXAMPLES_PER_STEP / row.gpus
    reduced = max(0.0, share - 0.75 * example_seconds) * passes
    return reduced + share  # and the new weights are gathered behind the step


def memory_gb(
    row: PublishedRow,
    constants: Constants,
    hardware: Hardware,
    decoder_learns: bool,
) -> float:
    """Add up one GPU's memory, GB, at most the card's."""
    model = published(row.strategy)
    config, holdings = model.config, model.holdings
    all_learn = decoder_learns or row.strategy != "frozen_vision"
    number = 2 if row.flash or "lora" not in row.strategy else 4
    held = float(holdings.whole * (2 if row.strategy == "qlora" else number))
    held += holdings.four_bit * FOUR_BIT_BYTES
    zero_slack = eager_slack = 0.0
    if "lora" in row.strategy:
        held += holdings.adapters * (4 + 4 + 8 + 4)  # weights, gradients, moments, DDP's buckets
    else:
        held += holdings.learnt * SHARDED_BYTES / row.gpus + 2 * 5e8 * 2
        zero_slack = constants.zero_slack_gb * GB if all_learn else 0.0
    # Logits in float32, shifted, their logarithms, and both gradients.
    held += TOKENS * config.vocab_size * (4 + 4 + 4 + 4 + 2)
    width, mlp = config.hidden_size, config.intermediate_size
    tower = config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2 + 1
    inputs = config.num_hidden_layers * TOKENS * width
    inputs += tower.num_hidden_layers * CROPS * patches * tower.hidden_size
    layer = TOKENS * (13 * width + 4 * mlp + 3 * width + 4 * mlp)
    held += number * (inputs + layer)
    if not row.flash:
        transient = TOKENS**2 * config.num_attention_heads * EAGER_TRANSIENT_BYTES
        transient = transient if all_learn else transient * 12 // EAGER_TRANSIENT_BYTES
        held += transient
        eager_slack = transient * constants.eager_slack if all_learn else 0.0
    slack = max(zero_slack, eager_slack)
    return float(min((held + slack) / GB + constants.context_gb, hardware.memory_bytes / GB))


def log_error(predicted: float, published: float) -> float:
    """Compare as a ratio: twice too much and half too little are equally wrong."""
    return math.log(predicted / published)
