"""An epoch shows each file as often as its weight says."""

from collections import Counter

import numpy as np
import pytest
from beginnings import sizes_in_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.encoded.column_files import Ragged
from foveal.data.row_planning.epochs import Shown, shown_in_epoch
from foveal.data.rows import RowPlanner


def epoch(weights, counts, number, seed=0, prefix_groups=None):
    shown = [Shown(count, weight) for count, weight in zip(counts, weights, strict=True)]
    prefix_groups = np.arange(sum(counts)) if prefix_groups is None else prefix_groups
    return shown_in_epoch(shown, prefix_groups, seed, number)[0].tolist()


def test_a_weight_of_two_shows_every_example_twice_and_one_shows_it_once():
    assert Counter(epoch([2, 1], [2, 3], 0)) == {0: 2, 1: 2, 2: 1, 3: 1, 4: 1}


def test_a_half_shows_one_half_and_then_the_other():
    first, second = (epoch([0.5], [10], number) for number in (0, 1))
    assert len(first) == len(second) == 5
    assert sorted(first + second) == list(range(10))
    assert first != epoch([0.5], [10], 0, seed=1)
    assert first == epoch([0.5], [10], 0)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.floats(0.01, 3.5)).map(lambda one: Shown(*one)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 5),
    st.integers(1, 12),
)
def test_after_any_number_of_epochs_no_example_was_shown_twice_more_than_another(
    shown, seed, epochs
):
    count = sum(one.examples for one in shown)
    seen = Counter()
    for number in range(epochs):
        examples, rounds = shown_in_epoch(shown, np.arange(count), seed, number)
        assert len(examples) == sum(one.an_epoch for one in shown)
        assert len(set(zip(examples.tolist(), rounds.tolist(), strict=True))) == len(examples)
        seen.update(examples.tolist())
    first = 0
    for one in shown:
        times = [seen[example] for example in range(first, first + one.examples)]
        assert max(times) - min(times) <= 1
        assert sum(times) == epochs * one.an_epoch
        assert abs(one.an_epoch - one.weight * one.examples) <= 0.5
        first += one.examples


def test_part_of_a_file_takes_the_questions_of_a_picture_together():
    prefix_groups = np.arange(40) // 4
    chosen = epoch([0.5], [40], 0, prefix_groups=prefix_groups)
    assert set(Counter(prefix_groups[chosen].tolist()).values()) == {4}


def sizes_of(shown, pages, questions):
    count = pages * questions
    page = np.arange(count, dtype=np.int32) // questions
    prompts = Ragged.of([[1, -1 - int(one), 2, 10 + place] for place, one in enumerate(page)])
    return sizes_in_memory(
        tokens=np.full(count, 20, np.int32),
        prompts=prompts,
        images=Ragged.of([[int(one)] for one in page]),
        image_tokens=np.full(pages, 9, np.int32),
        image_crops=np.full(pages, 2, np.int32),
        shown=shown,
    )


@pytest.mark.parametrize("order", ["shuffled", "as_is"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_steps_of_an_epoch_hold_exactly_what_it_shows(order, world_size):
    sizes = sizes_of((Shown(8, 2.5), Shown(16, 0.25)), 6, 4)
    plan = RowPlanner(
        sizes, examples_per_step=7, tokens_per_pass=200, world_size=world_size, order=order, seed=3
    )
    assert plan.steps_per_epoch == 4  # of 8 x 2.5 + 16 / 4 = 24
    for number in range(3):
        steps = [plan.step(number * 4 + step) for step in range(4)]
        seen = Counter(
            example
            for step in steps
            for rank in step.ranks
            for row in rank
            for example in row.examples
        )
        assert seen.total() == 24
        assert Counter(seen[example] for example in range(8)) == {2: 4, 3: 4}
        assert sum(seen[example] for example in range(8, 24)) == 4
    again = RowPlanner(
        sizes, examples_per_step=7, tokens_per_pass=200, world_size=world_size, order=order, seed=3
    )
    assert again.step(9) == plan.step(9)


def test_weights_of_one_change_nothing():
    plain, weighted = sizes_of((), 6, 4), sizes_of((Shown(8), Shown(16)), 6, 4)
    plans = [RowPlanner(one, examples_per_step=5, tokens_per_pass=200) for one in (plain, weighted)]
    assert [plans[0].step(n) for n in range(10)] == [plans[1].step(n) for n in range(10)]
