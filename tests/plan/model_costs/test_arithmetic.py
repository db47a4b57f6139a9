"""What the count of useful work promises."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveal.adapt.strategy import assign, rules_of
from foveal.bench.random_page import SIZES, LetterProcessor, make_model, make_random_page
from foveal.config import LoraSettings
from foveal.data.batch import build_batch
from foveal.data.forward_inputs import GroupSpan
from foveal.data.rows import Plan
from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.row_view import RowView
from foveal.models.shared_rows import choose_attention
from foveal.plan.epoch import seen_pairs
from foveal.plan.model_costs.arithmetic import proportions, strategy_of, useful_work
from foveal.train.loss import RowLoss

SIZE = SIZES["tiny"]
RANK = 8


@pytest.mark.parametrize("strategy", ["full", "frozen_vision", "lora"])
def test_useful_work_is_what_torch_counts_but_for_pairs_that_do_not_see_each_other(
    strategy, tmp_path
):
    dataset, processor = make_random_page(SIZE, 4, tmp_path), LetterProcessor(SIZE)
    plan = Plan(dataset.sizes, examples_per_step=4, tokens_per_pass=SIZE.tokens_per_pass)
    batch = build_batch(plan.step(0).ranks[0][0], dataset, processor)
    model = make_model(SIZE)
    assign(model, FAMILY, rules_of(strategy), 1e-4, 0.01, LoraSettings(rank=RANK))
    model.set_attn_implementation(choose_attention("eager"))  # the whole square
    with FlopCounterMode(display=False) as counter:
        RowLoss(model, FAMILY)(batch).backward()
    targets = len(batch.targets)
    work = useful_work(model.config, strategy_of(strategy, RANK), batch.groups, 79, 17, targets)
    length = batch.input_ids.shape[1]
    unseen = length**2 - seen_pairs(batch.groups)
    wasted = 3 * SIZE.layers * 4 * unseen * SIZE.width
    assert work.total + wasted == counter.get_total_flops()


def test_the_published_model_multiplies_what_its_sizes_say():
    # Worked by hand: 17 crops of 577 patches and 2,509 + 45 tokens through the published sizes.
    work = proportions(Phi3VisionConfig())
    layer = 2 * (4 * 3072**2 + 3 * 3072 * 8192) * 2554 + 4 * 3072 * (2554 * 2555 // 2)
    assert work.decoder == 32 * layer
    tower_layer = 2 * 12 * 1024**2 * 17 * 577 + 4 * 1024 * 17 * 577**2
    assert work.tower == 23 * tower_layer + 2 * 17 * 576 * 3 * 14**2 * 1024
    assert work.head == 2 * 2554 * 3072 * 32064
    assert work.projector == 2 * 2509 * (4096 * 3072 + 3072**2)


def test_the_standard_size_keeps_the_proportions_of_the_published_model():
    small = proportions(make_model(SIZES["standard"]).config)
    full = proportions(Phi3VisionConfig())
    assert small.tower / small.decoder == pytest.approx(full.tower / full.decoder, rel=0.2)
    assert small.head / small.decoder == pytest.approx(full.head / full.decoder, rel=0.2)


@pytest.mark.parametrize(
    "groups",
    [
        (GroupSpan(0, (), 7),),
        (GroupSpan(0, (4, 6), 9),),
        (GroupSpan(0, (), 3), GroupSpan(3, (5, 6, 10), 12), GroupSpan(12, (), 13)),
    ],
)
def test_as_many_pairs_are_counted_as_the_mask_shows(groups):
    mask = RowView(groups, torch.device("cpu")).square(None)
    assert seen_pairs(groups) == int(mask.sum())
