"""What the page of the bench promises."""

import numpy as np
import pytest
from foveal_bench.random_page import SIZES, LetterProcessor, find_size, make_random_page

from foveal.data.batch import build_batch
from foveal.data.rows import RowPlanner
from foveal.errors import ConfigError

STANDARD = SIZES["standard"]


def rows_of(dataset, size, share):
    questions = len(dataset.examples)
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=questions,
        tokens_per_pass=size.tokens_per_pass,
        share_images=share,
    )
    return plan.step(0).ranks[0]


def test_a_standard_page_is_16_crops_and_2509_tokens_as_a_scanned_letter_is(tmp_path):
    dataset = make_random_page(STANDARD, 4, tmp_path)
    assert [(one.shape.grid, one.shape.tokens) for one in dataset.images] == [((4, 4), 2509)]
    assert all(2509 + 20 + 10 <= tokens <= 2509 + 40 + 10 for tokens in dataset.sizes.tokens)
    assert all(example.learnt.sum() == 10 for example in dataset.examples)


@pytest.mark.parametrize("name", SIZES)
def test_a_pass_holds_one_page_with_all_questions_or_with_one(name, tmp_path):
    dataset = make_random_page(SIZES[name], 4, tmp_path)
    (row,) = rows_of(dataset, SIZES[name], share=True)
    assert sorted(row.examples) == [0, 1, 2, 3]
    assert [len(row.examples) for row in rows_of(dataset, SIZES[name], share=False)] == [1] * 4


def test_the_same_seed_asks_the_same_questions_of_the_same_pixels(tmp_path):
    size, batches = SIZES["tiny"], []
    for questions in (1, 4):
        dataset = make_random_page(size, questions, tmp_path)
        row = rows_of(dataset, size, share=False)[-1]
        batches.append(build_batch(row, dataset, LetterProcessor(size)))
        assert batches[-1].input_ids.max() < size.vocabulary
        first = dataset.examples[0].entries
        assert np.array_equal(first, make_random_page(size, 2, tmp_path).examples[0].entries)
    assert batches[0].pixels["pixel_values"].equal(batches[1].pixels["pixel_values"])


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="no size 'huge'; choose from tiny, standard"):
        find_size("huge")
