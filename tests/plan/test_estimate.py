"""What an estimate promises: terms worked by hand, and more of what there is more of."""

from dataclasses import replace
from functools import cache

import pytest
from daily import daily

from foveal.config import LoraSettings, ShardingSettings
from foveal.errors import ConfigError
from foveal.models.phi3_vision.seam import FAMILY
from foveal.plan.epoch import Epoch, RowCounts
from foveal.plan.hardware import HARDWARE, Efficiency, find_hardware
from foveal.plan.memory import estimate_memory, shares_of
from foveal.plan.model_costs.asked import AskedModel
from foveal.plan.question import published_model
from foveal.plan.seconds import exchange, rank_seconds, reading_seconds, ring_seconds, traffic_of
from foveal.plan.setup import Setup
from foveal.train.engines import engine_name

PERFECT = Efficiency(1, 1, 1, 1, 0, 0, "all of it")
PAGE = RowCounts(1, 2554, 2554 * 2555 // 2, 0, 0, 0, 1, 2509, 17, 10)
A100 = replace(find_hardware("a100-80gb"), reached=PERFECT)
ALL = ShardingSettings()


@cache
def asked(strategy):
    config, processor = published_model(16)
    return AskedModel(config, FAMILY, processor, strategy, LoraSettings(rank=64))


def setup(strategy="full", **changes):
    made = Setup(asked(strategy), "bf16", "none", "single", "flash_attention_2", 1, 1)
    return replace(made, **changes)


def test_a_page_through_a_perfect_a100_takes_what_its_operations_take():
    # Worked by hand: 32 layers of 113.2 million weights, 6 operations each and token.
    seconds = rank_seconds(setup(), [PAGE], A100, 1)
    layer = 4 * 3072**2 + 3 * 3072 * 8192
    assert seconds.decoder == pytest.approx(6 * 32 * layer * 2554 / 312e12)
    assert seconds.attention == pytest.approx(3 * 32 * 4 * 3072 * PAGE.pairs / 312e12)
    assert seconds.recompute == 0


@pytest.mark.parametrize("strategy", daily("full", beside=["lora"]))
def test_reading_a_page_takes_two_operations_a_weight_and_token_whatever_learns(strategy):
    layer = 4 * 3072**2 + 3 * 3072 * 8192
    costs = setup(strategy).costs_of_reading
    read = costs.language.operations.by["tokens"]
    assert read == pytest.approx(2 * 32 * layer, rel=0.03)  # adapters are asked too, and are small
    assert costs.language.attention_of_pair == 32 * 4 * 3072
    epoch = Epoch((((PAGE,),),), PAGE.tokens)
    alone = reading_seconds(setup(strategy), epoch, A100, 1)
    assert alone > 2 * 32 * layer * 2554 / 312e12
    step = rank_seconds(setup(strategy), [PAGE], A100, 1).total
    assert step / 4 < alone < step / 1.5
    two = replace(epoch, steps=2 * epoch.steps)
    assert reading_seconds(setup(strategy), two, A100, 1) == pytest.approx(2 * alone)


@pytest.mark.slow
def test_what_multiplies_no_matrices_takes_as_long_as_its_bytes_take_to_move():
    plain = setup(precision="float32")
    kept = plain.costs.saved_bytes(PAGE)
    moving = replace(A100, reached=replace(PERFECT, bandwidth=0.5, moved=3.0))
    still = replace(A100, reached=replace(PERFECT, bandwidth=0.5))
    once = rank_seconds(plain, [PAGE], moving, 1)
    again = rank_seconds(replace(plain, recompute="blocks"), [PAGE], moving, 1)
    assert once.elementwise == pytest.approx(3 * kept / (0.5 * 2039e9))
    assert again.elementwise == pytest.approx(once.elementwise * 4 / 3)
    assert once.total == pytest.approx(
        once.elementwise + rank_seconds(plain, [PAGE], still, 1).total
    )


@pytest.mark.slow
def test_adapters_and_4_bits_leave_more_holes_and_recomputing_none():
    def holes(strategy, recompute="none"):
        made = setup(strategy, recompute=recompute)
        memory = estimate_memory(made, PAGE, 2, 0, 0, slack=0.5)
        return memory.slack_bytes / memory.passing_bytes

    assert holes("full") == pytest.approx(0.5)
    assert holes("full") < holes("lora") < holes("qlora")
    assert holes("qlora", "blocks") == 0


def test_recomputing_costs_a_forward_pass_and_saves_memory():
    kept, again = setup(), setup(recompute="blocks")
    once = rank_seconds(kept, [PAGE], A100, 1)
    twice = rank_seconds(again, [PAGE], A100, 1)
    # Worked by hand: all but the last product of each layer, whose result nobody waits for; torch
    # ends a layer's second run there.
    decoder = 32 * 2 * (4 * 3072**2 + 2 * 3072 * 8192) * PAGE.tokens
    tower = 23 * (2 * (4 * 1024**2 + 1024 * 4096) * 17 * 577 + 4 * 1024 * 17 * 577**2)
    attention = 32 * 4 * 3072 * PAGE.pairs
    assert twice.recompute == pytest.approx((decoder + attention + tower) / 312e12)
    assert twice.recompute < (once.decoder + once.attention + once.tower) / 3
    assert (
        estimate_memory(again, PAGE, 2, 0, 0).total_bytes
        < estimate_memory(kept, PAGE, 2, 0, 0).total_bytes
    )


def test_one_copy_of_all_weights_gradients_and_moments_is_16_bytes_a_number():
    memory = estimate_memory(setup(precision="float32"), PAGE, 2, 0, 0)
    learnt = 4146621440 - 12598272  # but for the layer that is not read
    held = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes
    assert held == pytest.approx(4 * 4146621440 + 12 * learnt, rel=1e-6)


def test_a_frozen_tower_keeps_nothing_and_adapters_have_little_to_move():
    frozen = estimate_memory(setup("frozen_vision"), PAGE, 2, 0, 0)
    assert frozen.tower_bytes < estimate_memory(setup(), PAGE, 2, 0, 0).tower_bytes / 10
    lora, qlora = (
        shares_of(asked(one).holdings, "single", 1, frozen_bytes=2) for one in ("lora", "qlora")
    )
    assert lora.optimizer_bytes == pytest.approx(8 * 130895872, rel=1e-4)
    # A fixed number is held in 2 bytes, or in 4 bits; embedding and head are not packed.
    assert qlora.weights_bytes < lora.weights_bytes / 2.5


def test_a_ring_of_eight_moves_seven_eighths_through_each_link():
    eight = setup(engine="ddp", gpus=8)
    assert ring_seconds(8e9, eight, A100) == pytest.approx(7e9 / 300e9)
    assert ring_seconds(8e9, setup(), A100) == 0


def test_what_travels_longer_than_the_work_is_seen():
    eight = setup(engine="ddp", gpus=8)
    hidden, exposed = exchange(eight, 1, 10.0, 20.0, A100)
    assert exposed == 0
    _, bare = exchange(eight, 1, 0.0, 0.0, A100)
    assert bare == pytest.approx(hidden)


def test_more_nodes_never_take_less_time_to_share():
    seconds = [
        ring_seconds(16e9, setup(engine="ddp", gpus=8, nodes=nodes), A100)
        for nodes in (1, 2, 4, 16, 128, 1024)
    ]
    assert seconds == sorted(seconds)


def test_blocks_that_travel_in_16_bits_take_half_the_bytes_and_all_else_what_it_took():
    cut = setup(engine="fsdp2", gpus=8)
    rounded = replace(cut, sharding=ShardingSettings(gather="precision"))
    outside = cut.holdings.outside_blocks.numbers
    whole, half = traffic_of(cut, 3), traffic_of(rounded, 3)
    assert whole.gathered_bytes == 3 * 2 * 4 * cut.holdings.whole
    assert half.gathered_bytes == 3 * 2 * (2 * (cut.holdings.whole - outside) + 4 * outside)
    assert half.reduced_bytes == whole.reduced_bytes
    assert traffic_of(replace(rounded, precision="float32"), 3) == whole


def test_cut_within_a_node_gradients_alone_cross_between_nodes_and_once_a_step():
    # Worked by hand: eight rings of four nodes, an eighth of the gradients each, twice three
    # quarters of it through the node's link of eight 200 Gb/s.
    many = setup(engine="fsdp2", gpus=8, nodes=4, sharding=ShardingSettings(group="node"))
    fast = replace(A100, node_latency_seconds=0.0)
    crossing = [
        exchange(replace(many, nodes=nodes), passes, 0.0, 0.0, fast)[1]
        for passes in (1, 3)
        for nodes in (4, 1)
    ]
    gradients = 4 * many.holdings.learnt
    expected = 2 * gradients * 3 / 4 / A100.node_link_bytes_per_second
    assert crossing[0] - crossing[1] == pytest.approx(expected)
    assert crossing[2] - crossing[3] == pytest.approx(expected)
    alone = replace(many, nodes=1)
    moved = [rank_seconds(one, [PAGE], A100, 1).optimizer for one in (many, alone)]
    assert moved[0] == moved[1]
    held, here = (estimate_memory(one, PAGE, 2, 0, 0).total_bytes for one in (many, alone))
    assert held == here  # more nodes share no more of it
    assert held > estimate_memory(replace(many, sharding=ALL), PAGE, 2, 0, 0).total_bytes


def test_light_takes_no_matrix_work_again_and_keeps_less():
    ways = [setup(recompute=one) for one in ("none", "light", "blocks")]
    seconds = [rank_seconds(one, [PAGE], A100, 1) for one in ways]
    assert seconds[0].recompute == seconds[1].recompute == 0 < seconds[2].recompute
    held = [estimate_memory(one, PAGE, 2, 0, 0).total_bytes for one in ways]
    assert held == sorted(held, reverse=True)


def test_cards_without_bf16_say_so_and_unknown_ones_are_refused():
    assert "bf16" not in HARDWARE["t4"].matrix_flops
    assert "bf16" not in HARDWARE["v100-32gb"].matrix_flops
    assert all(one.source for one in HARDWARE.values())
    with pytest.raises(ConfigError, match="--gpu a1000: not known"):
        find_hardware("a1000")


def test_auto_engines_are_decided_as_a_run_decides():
    assert [engine_name("auto", count) for count in (1, 8)] == ["single", "ddp"]
    assert engine_name("fsdp2", 8) == "fsdp2"
