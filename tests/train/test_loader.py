"""The place in the data is found without a look at what came before."""

import pytest
import torch
from tiny import make_model, pages
from torch.utils.data._utils.pin_memory import pin_memory

from foveal.data import rows
from foveal.data.dataset import read_dataset
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.rows import RowPlanner


class CountingPlan(RowPlanner):
    """Remembers which steps it was asked for."""

    asked: list[int]

    def rows_of(self, index, rank):
        self.asked.append(index)
        return super().rows_of(index, rank)


@pytest.fixture(params=[1.0, 0.5, 2.5], ids="weight {}".format)
def weighted(tmp_path, request):
    return a_loader(tmp_path, [request.param])


@pytest.fixture
def loader(tmp_path):
    return a_loader(tmp_path)


def a_loader(tmp_path, weights=()):
    loaded = make_model(tmp_path / "model")
    _, dataset = read_dataset(pages(tmp_path, 3, 4), loaded.processor, weights=weights)
    planner = CountingPlan(dataset.sizes, examples_per_step=5, tokens_per_pass=400)
    planner.asked = []
    return StepLoader(planner, RowBatches(dataset, loaded.processor, "token"))


@pytest.mark.parametrize("start", [0, 7, 1_000_000_007])
def test_a_run_that_goes_on_plans_and_opens_nothing_of_the_steps_before(loader, start):
    work = next(loader.steps(start, start + 2))
    given = [name for batch in work.batches for name in batch.example_ids]
    assert set(loader.planner.asked) == {start}
    assert len(given) == (5, 5, 2)[start % 3]


def test_steps_from_the_middle_on_are_those_of_the_whole(loader):
    def ids(start):
        return [
            [name for batch in work.batches for name in batch.example_ids]
            for work in loader.steps(start, 6)
        ]

    assert ids(4) == ids(0)[4:]


@pytest.mark.parametrize("step", [0, 3, 6])
def test_the_examples_of_all_steps_so_far_are_counted_by_arithmetic(weighted, step):
    given = [len(weighted.planner.examples(one)) for one in range(step)]
    assert weighted.examples_until(step) == sum(given)


def test_every_tensor_of_a_batch_is_pinned_where_a_gpu_is_to_fetch_it(loader, monkeypatch):
    # torch hands back unchanged, without a word, whatever it does not know how to pin.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda one: pinned.append(one) or one.clone())
    batch = next(next(loader.steps(0, 1)).batches)
    copied = pin_memory(batch)
    before, after = (vars(one) | one.pixels for one in (batch, copied))
    tensors = {name for name, one in before.items() if isinstance(one, torch.Tensor)}
    assert {"pixel_values", "input_ids", "targets"} < tensors
    assert len(pinned) == len(tensors)
    for name in before.keys() - {"pixels"}:
        if name in tensors:
            assert after[name].equal(before[name])
            assert after[name] is not before[name]
        else:
            assert after[name] is before[name]


@pytest.mark.parametrize("most", [0, 3])
def test_a_rank_with_fewer_rows_than_one_far_away_keeps_it_company(tmp_path, monkeypatch, most):
    monkeypatch.setattr(rows, "RANKS_OF_A_BLOCK", 1)
    loaded = make_model(tmp_path / "model")
    _, dataset = read_dataset(pages(tmp_path, 3, 4), loaded.processor)
    planner = RowPlanner(dataset.sizes, examples_per_step=6, tokens_per_pass=400, world_size=2)
    asked = []
    given, seen = [], []
    for rank in range(2):
        loader = StepLoader(
            planner,
            RowBatches(dataset, loaded.processor, "token"),
            rank,
            most_of_all=lambda own: asked.append(own) or max(own, most),
        )
        for work in loader.steps(0, 2):
            batches = list(work.batches)
            assert len(batches) == max(asked[-1], most)
            given += [name for batch in batches for name in batch.example_ids]
            seen.append(sum(bool(batch.example_ids) for batch in batches))
    assert seen == asked
    assert sorted(given) == sorted(one.id for one in dataset.examples)
