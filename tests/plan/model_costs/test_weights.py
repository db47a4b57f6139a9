"""What the list of weights promises."""

import math

import pytest
import torch
from foveal_bench.random_page import SIZES, make_model

from foveal.adapt.quantize import bare_model
from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings, Rule, TrainSettings
from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.seam import FAMILY
from foveal.plan.memory import shares_of
from foveal.plan.model_costs.weights import HeldTensor, assign_without_weights, count_holdings
from foveal.train.engines.zero2 import BUCKET_NUMBERS
from foveal.train.optim import build_optimizer

SIZE, RANK = SIZES["tiny"], 4
SOME_RULES = (
    Rule(match="vision.*", learn=False),
    Rule(match="language.layers.1.*", adapter=True),
    Rule(match="*.embed_tokens.*", learn=False),
    Rule(match="*"),
)


def test_the_published_model_has_as_many_parameters_as_its_files():
    # tests/golden/phi3v-facts counts them in the published checkpoint.
    parts = {"vision": 303507456, "projector": 22034432, "language": 3821079552}
    found = dict.fromkeys(parts, 0)
    for name, weight in bare_model(Phi3VisionConfig()).named_parameters():
        found[FAMILY.part_name(name).partition(".")[0]] += weight.numel()
    assert found == parts


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        *((one, "adamw") for one in ("full", "frozen_vision", "lora", SOME_RULES)),
        *(("full", one) for one in ("adamw_8bit", "adafactor", "muon")),
        ("lora", "muon"),
    ],
)
def test_weights_gradients_and_moments_take_the_bytes_that_torch_allocates(strategy, name):
    model = make_model(SIZE)
    settings = TrainSettings(optimizer=name)
    lora = LoraSettings(rank=RANK)
    assignments = assign(model, FAMILY, rules_of(strategy), 1e-4, 0.01, lora)
    optimizer = build_optimizer(model, assignments, settings)
    learnt = [one for one in model.parameters() if one.requires_grad]
    for one in learnt:
        one.grad = torch.zeros_like(one)
    optimizer.step()
    moments = {
        id(one): one
        for state in optimizer.state.values()
        for key, one in state.items()
        if isinstance(one, torch.Tensor) and not key.startswith("qmap")  # a table for all of them
    }.values()
    holdings = holdings_of(model.config, strategy, RANK)
    shares = shares_of(holdings, "single", 1, optimizer=name)
    assert shares.weights_bytes + shares.adapters_bytes == _bytes(model.parameters())
    assert shares.gradients_bytes == _bytes(one.grad for one in learnt)
    assert shares.optimizer_bytes == _bytes(moments)


def test_weights_in_four_bits_take_half_a_byte_and_their_scales():
    # Worked by hand: a byte for each 64 weights, and 4 for each 256 of those; or 4 for each 64.
    codes = 4 * 16, 4 * (16 + 256 + 1)
    layer = HeldTensor(256, 256 * 257, "four_bit", False)
    assert layer.packed_bytes(1, double=False) == 128 * 257 + 4 * 1028 + codes[0]
    assert layer.packed_bytes(1, double=True) == 128 * 257 + 1028 + 4 * 5 + codes[1]
    assert layer.packed_bytes(4, double=True) == 32 * 257 + 1028 + 4 * 5 + codes[1]
    config = Phi3VisionConfig()
    holdings = holdings_of(config, "qlora", 64)
    head = config.vocab_size * config.hidden_size
    tower = 24 * (4 * 1024**2 + 2 * 1024 * 4096)  # an unused layer is packed too
    projector = 4 * 1024 * 3072 + 3072**2
    decoder = 32 * (4 * 3072**2 + 3 * 3072 * 8192)
    assert holdings.four_bit == decoder + tower + projector
    assert holdings.frozen_linear == head


def test_sharded_engines_hold_their_share_and_gather_blocks():
    holdings = holdings_of(Phi3VisionConfig(), "full", 64)
    one, eight = shares_of(holdings, "fsdp2", 1), shares_of(holdings, "fsdp2", 8)
    shapes = [weight.shape for weight in bare_model(Phi3VisionConfig()).parameters()]
    rows = [math.ceil(shape[0] / 8) for shape in shapes]  # separators of one row are not cut
    first = sum(count * shape[1:].numel() for count, shape in zip(rows, shapes, strict=True))
    assert one.weights_bytes == 4 * sum(shape.numel() for shape in shapes)
    assert eight.weights_bytes == 4 * first > one.weights_bytes / 8
    assert eight.gradients_bytes < eight.weights_bytes  # one layer is not read
    assert holdings.largest_block.numbers == 4 * 3072**2 + 3 * 3072 * 8192 + 2 * 3072
    whole = shares_of(holdings, "zero2", 8)
    assert whole.weights_bytes == 4 * holdings.whole
    assert whole.gradients_bytes == pytest.approx(4 * holdings.learnt / 8, abs=4 * 16)
    assert whole.buckets_bytes == 4 * BUCKET_NUMBERS


def holdings_of(config, strategy, rank):
    lora = LoraSettings(rank=rank)
    return count_holdings(assign_without_weights(config, FAMILY, rules_of(strategy), lora))


def _bytes(tensors):
    return sum(one.numel() * one.element_size() for one in tensors)
