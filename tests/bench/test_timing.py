"""What the measuring promises."""

import io
import json
import re

import pytest
import torch
from daily import daily
from foveal_bench import timing
from foveal_bench.contender import Case, Contender
from foveal_bench.random_page import SIZES
from foveal_bench.timing import (
    Timed,
    forward_operations,
    make_results,
    run_bench,
    time_in_turn,
)
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from foveal.errors import ConfigError
from foveal.plan import this_machine


def run(strategies, as_json, monkeypatch):
    monkeypatch.setattr(this_machine, "MATRIX_SIDE", 64)
    monkeypatch.setattr(timing, "peak_of", lambda case: 10 if case.way == "recipe" else 4)
    page = io.StringIO()
    results = run_bench("tiny", 1, strategies, 1, as_json, Console(file=page, width=80))
    return results, page.getvalue()


@pytest.mark.slow
def test_every_way_of_every_strategy_stands_in_the_table(monkeypatch):
    results, page = run(("full", "lora"), False, monkeypatch)
    measured = [(one.strategy, one.questions, one.way) for one in results]
    single = ["recipe", "shared", "light", "recompute"]
    ways = [(1, way) for way in single] + [(4, way) for way in ["recipe", "separate", *single[1:]]]
    assert measured == [(strategy, *way) for strategy in ("full", "lora") for way in ways]
    assert page.count("recipe's way") == 4
    assert len(re.findall(r"40% *$", page, re.MULTILINE)) == 14
    assert "1 threads" in page


@pytest.mark.slow
def test_the_json_holds_what_the_function_returns(monkeypatch):
    results, page = run(("full",), True, monkeypatch)
    tree = json.loads(page)
    assert tree["results"] == [vars(one) for one in results]
    assert tree["machine"]["threads"] == 1
    assert tree["forward_operations"]["decoder"] > 0


def test_rates_and_ratios_come_from_the_median_round():
    def case(way):
        return Case("tiny", "full", 4, way)

    recipe = (case("recipe"), Timed((8.0, 30.0, 9.0), 1000, 4e9), 500)
    shared = (case("shared"), Timed((2.0, 1.0, 1.5), 1000, 3e9), 200)
    slow, fast = make_results([recipe, shared], matrix_speed=4e9)
    assert (slow.seconds, slow.fastest_seconds, slow.slowest_seconds) == (9.0, 8.0, 30.0)
    assert (slow.speed_ratio, slow.memory_ratio) == (1.0, 1.0)
    assert fast.questions_per_second == pytest.approx(4 / 1.5)
    assert fast.images_per_second == pytest.approx(1 / 1.5)
    assert fast.tokens_per_second == pytest.approx(1000 / 1.5)
    assert fast.matrix_share == pytest.approx(3e9 / 1.5 / 4e9)
    assert (fast.speed_ratio, fast.memory_ratio) == (6.0, 0.4)


def test_the_ways_take_turns(monkeypatch):
    steps = []

    class Counting:
        tokens, operations = 1, 1.0

        def __init__(self, case, _folder):
            self.way = case.way

        def step(self):
            steps.append(self.way)

    monkeypatch.setattr(timing, "Contender", Counting)
    cases = [Case("tiny", "full", 1, way) for way in ("recipe", "shared")]
    timed = time_in_turn(cases, 3)
    assert steps == ["recipe", "shared"] * 3
    assert [len(one.seconds) for one in timed] == [3, 3]


@pytest.mark.parametrize("strategy", daily("full", beside=["frozen_vision", "lora"]))
def test_each_way_takes_the_same_optimizer_steps(strategy, tmp_path):
    ways = ("recipe", "separate", "shared", "light", "recompute")
    sides = [Contender(Case("tiny", strategy, 4, way), tmp_path) for way in ways]
    losses = torch.tensor([[side.step() for _ in range(3)] for side in sides])
    torch.testing.assert_close(losses, losses[:1].expand(5, 3), rtol=1e-5, atol=0)
    assert losses[0, 2] < losses[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "frozen_vision", "lora"])
def test_useful_work_is_what_torch_counts_but_for_pairs_that_do_not_see_each_other(
    strategy, tmp_path
):
    case = Contender(
        Case("tiny", strategy, 4, "shared", attention="eager"), tmp_path
    )  # whole squares
    (batch,), (counts,) = case.rows, case.counts
    with FlopCounterMode(display=False) as counter:
        case.way(batch).backward()
    size = SIZES["tiny"]
    unseen = counts.tokens**2 - counts.pairs
    wasted = 3 * size.layers * 4 * unseen * size.width
    assert case.operations + wasted == counter.get_total_flops()


def test_the_published_model_multiplies_what_its_sizes_say():
    # Worked by hand: 17 crops of 577 patches and 2,509 + 45 tokens through the published sizes.
    work = forward_operations(SIZES["published"])
    layer = 2 * (4 * 3072**2 + 3 * 3072 * 8192) * 2554 + 4 * 3072 * (2554 * 2555 // 2)
    assert work.decoder == 32 * layer
    assert work.decoder_attention == 32 * 4 * 3072 * (2554 * 2555 // 2)
    tower_layer = 2 * 12 * 1024**2 * 17 * 577 + 4 * 1024 * 17 * 577**2
    assert work.tower == 23 * tower_layer + 2 * 17 * 576 * 3 * 14**2 * 1024
    assert work.head == 2 * 2554 * 3072 * 32064
    assert work.projector == 2 * 2509 * (4096 * 3072 + 3072**2)


def test_the_standard_size_keeps_the_proportions_of_the_published_model():
    small, full = (forward_operations(SIZES[name]) for name in ("standard", "published"))
    assert small.tower / small.decoder == pytest.approx(full.tower / full.decoder, rel=0.2)
    assert small.head / small.decoder == pytest.approx(full.head / full.decoder, rel=0.2)


@pytest.mark.slow
def test_only_sharing_saves_useful_work(tmp_path):
    ways = ("recipe", "separate", "shared", "light", "recompute")
    sides = [Contender(Case("tiny", "full", 4, way), tmp_path) for way in ways]
    recipe, separate, shared, light, recompute = (side.operations for side in sides)
    assert recipe == separate > 3 * shared
    assert shared == light == recompute
    assert len({side.tokens for side in sides}) == 1


@pytest.mark.slow
def test_the_peak_of_a_step_is_taken_in_a_process_of_its_own():
    peak = timing.peak_of(Case("tiny", "full", 1, "shared"))
    assert 10**5 < peak < 10**9


@pytest.mark.parametrize(
    ("size", "strategy", "message"),
    [
        ("huge", "full", "no size 'huge'"),
        ("tiny", "qlora", "no strategy 'qlora'; choose from full, frozen_vision, lora"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(size, strategy, message):
    with pytest.raises(ConfigError, match=message):
        run_bench(size, 1, (strategy,), 1, False, Console(file=io.StringIO()))
