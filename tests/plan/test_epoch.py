"""What the count of an epoch's rows promises."""

import json
from dataclasses import asdict
from itertools import accumulate

import numpy as np
import pytest
import tiny
import torch
from foveal_bench.random_page import SIZES, LetterProcessor, make_random_page
from pairs import pair_pages

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.forward_inputs import GroupSpan
from foveal.data.rows import RowPlanner
from foveal.models.row_view import RowView
from foveal.plan.epoch import (
    Epoch,
    count_groups,
    count_row,
    histogram,
    plan_steps,
    questions_of_images,
)

SIZE = SIZES["tiny"]


def test_a_row_is_counted_as_it_is_built(tmp_path):
    dataset = make_random_page(SIZE, 4, tmp_path)
    plan = RowPlanner(dataset.sizes, examples_per_step=4, tokens_per_pass=SIZE.tokens_per_pass)
    (row,) = plan.step(0).ranks[0]
    counts = count_row(row, dataset.sizes, dataset.examples.targets)
    batch = build_batch(row, dataset, LetterProcessor(SIZE))
    assert counts.tokens == batch.input_ids.shape[1]
    seen = RowView(batch.groups, torch.device("cpu")).square(None)
    assert counts.pairs == int(seen.sum())
    assert counts.targets == len(batch.targets)
    assert counts.crops == len(batch.pixels["pixel_values"]) + 1  # its global view
    assert counts.examples == 4


def test_every_example_of_an_epoch_is_counted_once(tmp_path):
    dataset = make_random_page(SIZE, 7, tmp_path)
    plan = RowPlanner(
        dataset.sizes, examples_per_step=3, tokens_per_pass=SIZE.tokens_per_pass, world_size=2
    )
    epoch = plan_steps(plan, dataset.examples.targets, range(plan.steps_per_epoch))
    assert epoch.total.examples == dataset.sizes.num_sets == 7
    assert len(epoch.steps) == 3
    assert all(len(step) == 2 for step in epoch.steps)
    assert questions_of_images(dataset.sizes).tolist() == [7]
    assert epoch.separate_tokens == dataset.sizes.tokens.sum() > epoch.total.tokens


@pytest.mark.parametrize("rejected", [1, 2])
def test_what_is_in_a_row_of_pairs_can_be_written_down(tmp_path, rejected):
    loaded = tiny.make_model(tmp_path / "model")
    pages = pair_pages(tmp_path, 1, 2, rejected=rejected)
    _, dataset = read_dataset(pages, loaded.processor, pairs=True)
    plan = RowPlanner(dataset.sizes, examples_per_step=2, tokens_per_pass=2000)
    (row,) = plan.step(0).ranks[0]
    counts = asdict(count_row(row, dataset.sizes, dataset.examples.targets))
    assert json.loads(json.dumps(counts))["examples"] == 2  # each question, whatever its answers


def test_nothing_adds_up_to_nothing():
    assert Epoch((), 0).total.tokens == 0


@pytest.mark.parametrize(
    "groups",
    [
        [(7, [])],
        [(4, [2, 3])],
        [(3, []), (2, [1, 4, 2]), (1, [])],
    ],
)
def test_as_many_pairs_are_counted_as_the_mask_shows(groups):
    spans, start = [], 0
    for prefix, branches in groups:
        ends = list(accumulate(branches, initial=start + prefix))
        spans.append(GroupSpan(start, tuple(ends[:-1]), ends[-1]))
        start = ends[-1]
    mask = RowView(tuple(spans), torch.device("cpu")).square(None)
    nothing = np.zeros(0, np.int64)
    counts = count_groups(groups, nothing, nothing, examples=1, targets=0)
    assert counts.pairs == int(mask.sum())
    assert counts.tokens == start


def test_a_histogram_loses_no_value():
    few = np.array([3, 3, 17])
    assert histogram(few) == [(3, 3, 2), (17, 17, 1)]
    many = np.arange(1000)
    bins = histogram(many)
    assert sum(count for _, _, count in bins) == 1000
    assert (bins[0][0], bins[-1][1]) == (0, 999)
