"""What the count of an epoch's rows promises."""

import numpy as np

from foveal.bench.random_page import SIZES, LetterProcessor, make_random_page
from foveal.data.batch import build_batch
from foveal.data.rows import Plan
from foveal.plan.epoch import add_up, count_row, histogram, plan_epoch, seen_pairs, targets_of

SIZE = SIZES["tiny"]


def test_a_row_is_counted_as_it_is_built(tmp_path):
    dataset = make_random_page(SIZE, 4, tmp_path)
    plan = Plan(dataset.sizes, examples_per_step=4, tokens_per_pass=SIZE.tokens_per_pass)
    (row,) = plan.step(0).ranks[0]
    counts = count_row(row, dataset.sizes, targets_of(dataset.examples))
    batch = build_batch(row, dataset, LetterProcessor(SIZE))
    assert counts.tokens == batch.input_ids.shape[1]
    assert counts.pairs == seen_pairs(batch.groups)
    assert counts.targets == len(batch.targets)
    assert counts.crops == len(batch.pixels["pixel_values"]) + 1  # its global view
    assert counts.examples == 4


def test_every_example_of_an_epoch_is_counted_once(tmp_path):
    dataset = make_random_page(SIZE, 7, tmp_path)
    plan = Plan(
        dataset.sizes, examples_per_step=3, tokens_per_pass=SIZE.tokens_per_pass, world_size=2
    )
    epoch = plan_epoch(plan, targets_of(dataset.examples))
    assert epoch.total.examples == epoch.examples == 7
    assert len(epoch.steps) == 3
    assert all(len(step) == 2 for step in epoch.steps)
    assert epoch.questions_of_images.tolist() == [7]
    separate = int(dataset.sizes.tokens.sum())
    assert epoch.saved_tokens_share == 1 - epoch.total.tokens / separate


def test_nothing_adds_up_to_nothing():
    assert add_up([]).tokens == 0


def test_a_histogram_loses_no_value():
    few = np.array([3, 3, 17])
    assert histogram(few) == [(3, 3, 2), (17, 17, 1)]
    many = np.arange(1000)
    bins = histogram(many)
    assert sum(count for _, _, count in bins) == 1000
    assert (bins[0][0], bins[-1][1]) == (0, 999)
