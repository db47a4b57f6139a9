"""The answers of a pair keep together, from the line of JSON to the row."""

from itertools import chain

import numpy as np
import pytest
import torch
from beginnings import sizes_in_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import CHOSEN, REJECTED, pair_pages
from tiny import make_image, make_model, turn, write_data

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.encode import count_tokens
from foveal.data.encoded.column_files import Ragged
from foveal.data.example import parse_example, read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.data.rows import RowPlanner
from foveal.errors import DataError


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model")).processor


def decoded(dataset, processor, place):
    encoded = dataset.examples[place]
    return processor.decode_answer(encoded.entries[encoded.learnt].tolist())


def test_one_rejected_answer_stands_by_itself_and_several_in_a_list():
    line = '{"id": "a", "conversations": [{"user": "q", "assistant": "yes", "rejected": %s}]}'
    assert parse_example(line % '"no"').turns[0].rejected == ("no",)
    assert parse_example(line % '["no", "never"]').turns[0].rejected == ("no", "never")
    for written in ('"no"', '["no","never"]'):
        assert f'"rejected":{written}' in parse_example(line % written).to_json()
    without = parse_example('{"id": "a", "conversations": [{"user": "q", "assistant": "yes"}]}')
    assert "rejected" not in without.model_dump_json()  # answers go by how questions are written
    with pytest.raises(ValueError, match=r'"conversations\.0\.rejected'):
        parse_example(line % "[1]")


def test_the_answers_to_one_question_are_a_set_behind_one_prompt(tmp_path, processor):
    file = pair_pages(tmp_path, 1, 2, rejected=2, places=(1, 3))
    _, dataset = read_dataset(file, processor, pairs=True)
    assert dataset.sizes.sets.tolist() == [0, 3, 6]
    said = [decoded(dataset, processor, place) for place in range(6)]
    assert said[:3] == [CHOSEN[1], REJECTED[1], f"{REJECTED[1]} Really."]
    assert said[3:5] == [CHOSEN[3], REJECTED[3]]
    prompts = dataset.sizes.prompts.take(range(6))
    assert prompts[0] == prompts[1] == prompts[2] != prompts[3]


def test_a_check_counts_the_tokens_up_to_each_rejected_answer_as_a_run_reads_them(
    tmp_path, processor
):
    file = pair_pages(tmp_path, 1, 1, rejected=2)
    _, dataset = read_dataset(file, processor, pairs=True)
    (example,) = read_examples(file)
    counts = count_tokens(processor, example, ImageFolder(file))
    lengths = dataset.sizes.tokens.tolist()
    assert [sum(counts.turns), *(tokens for _, tokens in counts.rejected)] == lengths
    assert len(set(lengths)) > 1


def test_without_pairs_the_answers_are_learnt_as_if_none_were_rejected(tmp_path, processor):
    file = pair_pages(tmp_path, 2, 2)
    plain = tmp_path / "plain.jsonl"
    plain.write_text(
        "\n".join(
            parse_example(line).model_copy(deep=True).to_json().split(',"rejected"')[0] + "}]}"
            for line in file.read_text().splitlines()
        )
    )
    sets = [read_dataset(one, processor)[1] for one in (file, plain)]
    assert sets[0].fingerprint == sets[1].fingerprint
    assert sets[0].sizes.sets is None


def test_each_turn_with_rejected_answers_is_a_set_behind_all_that_was_said_before(
    tmp_path, processor
):
    make_image(tmp_path / "images" / "0.png", 0)
    make_image(tmp_path / "images" / "1.png", 1)
    turns = [
        turn("a?", "yes", ["0.png"], rejected="no"),
        turn("b?", "red", ["1.png"]),
        turn("c?", "big", rejected="small"),
    ]
    _, dataset = read_dataset(write_data(tmp_path / "d.jsonl", [turns]), processor, pairs=True)
    assert dataset.sizes.sets.tolist() == [0, 2, 4]
    assert [decoded(dataset, processor, place) for place in range(4)] == [
        "yes",
        "no",
        "big",
        "small",
    ]
    _, whole = read_dataset(tmp_path / "d.jsonl", processor)
    first, last = dataset.examples[0], dataset.examples[2]
    assert len(first.images) == 1
    assert last.entries.tolist() == whole.examples[0].entries.tolist()
    assert len(last.images) == 2


@pytest.mark.parametrize(
    ("rejected", "said"),
    [
        ((), 'data.jsonl:2 .*no turn has a "rejected" answer'),
        (("yes",), "data.jsonl:2 .*two of its answers are the same tokens"),
        (("no", "no"), "data.jsonl:2 .*two of its answers are the same tokens"),
    ],
)
def test_a_line_that_teaches_no_preference_is_refused_by_its_number(
    tmp_path, processor, rejected, said
):
    turns = [[turn("q", "yes", rejected=["no"])], [turn("q", "yes", rejected=list(rejected))]]
    file = write_data(tmp_path / "data.jsonl", turns)
    with pytest.raises(DataError, match=said):
        read_dataset(file, processor, pairs=True)


def test_files_show_their_sets_as_often_as_they_weigh(tmp_path, processor):
    files = [pair_pages(tmp_path, 2, 2, "one", rejected=2), pair_pages(tmp_path, 1, 2, "two")]
    _, dataset = read_dataset(files, processor, weights=(1.0, 2.0), pairs=True)
    plan = RowPlanner(dataset.sizes, examples_per_step=100, tokens_per_pass=10_000)
    shown = plan.examples(0).tolist()
    counts = np.bincount(shown, minlength=len(dataset.examples)).tolist()
    assert counts == [1] * 12 + [2] * 4


def sizes_of(sets, image_tokens=50):
    """Sets of (page, tokens of each answer), all asked alike about their page."""
    prompts = [[1, -(1 + page), 2, 3 + page % 2] for page, own in sets for _ in own]
    tokens = [3 + image_tokens + one for _, own in sets for one in own]
    pages = [[page] for page, own in sets for _ in own]
    number = 1 + max(page for page, _ in sets)
    return sizes_in_memory(
        np.asarray(tokens, np.int32),
        Ragged.of(prompts),
        Ragged.of(pages),
        np.full(number, image_tokens, np.int32),
        np.ones(number, np.int32),
        sets=np.cumsum([0, *(len(own) for _, own in sets)]),
    )


@settings(max_examples=60, deadline=None)
@given(
    sets=st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.integers(1, 60), min_size=2, max_size=4)),
        min_size=1,
        max_size=20,
    ),
    budget=st.integers(60, 600),
    ranks=st.integers(1, 4),
    share=st.booleans(),
    border=st.sampled_from([None, 80]),
)
def test_no_set_is_parted_and_every_token_is_accounted_for(sets, budget, ranks, share, border):
    sizes = sizes_of(sets)
    plan = RowPlanner(
        sizes,
        examples_per_step=7,
        tokens_per_pass=budget,
        world_size=ranks,
        share_images=share,
        long_context_tokens=border,
    )
    assert plan.steps_per_epoch == -(-len(sets) // 7)
    seen = []
    for step in range(plan.steps_per_epoch):
        for row in chain.from_iterable(plan.step(step).ranks):
            seen += row.examples
            whole = {one for number in sizes.set_of(row.examples) for one in members(sizes, number)}
            assert sorted(row.examples) == sorted(whole)
            held = len({sizes.set_of([one])[0] for one in row.examples})
            assert row.tokens(sizes) <= budget or held == 1
            for group in row.groups:
                assert share or len(group.examples) == 1
                long = {sizes.tokens[one] > (border or 10**9) for one in group.examples}
                assert (
                    len(long) == 1
                )  # long ones are read otherwise: they share nothing with others
    assert sorted(seen) == list(range(len(sizes.tokens)))


def members(sizes, number):
    return range(sizes.sets[number], sizes.sets[number + 1])


def test_a_batch_pairs_each_chosen_answer_with_those_rejected_for_it(tmp_path, processor):
    _, dataset = read_dataset(pair_pages(tmp_path, 2, 2, rejected=2), processor, pairs=True)
    for share in (True, False):
        plan = RowPlanner(
            dataset.sizes, examples_per_step=4, tokens_per_pass=10_000, share_images=share
        )
        (row,) = plan.step(0).ranks[0]
        known = np.arange(12, dtype=np.float32)
        batch = build_batch(row, dataset, processor, reference=known)
        named = [batch.pairs.examples[place] for place in batch.pairs.chosen.tolist()]
        against = [batch.pairs.examples[place] for place in batch.pairs.rejected.tolist()]
        assert sorted(zip(named, against, strict=True)) == [
            (first, first + more) for first in (0, 3, 6, 9) for more in (1, 2)
        ]
        assert batch.pairs.reference.tolist() == list(batch.pairs.examples)
        assert batch.count == 8
        assert len(batch.example_ids) == 4


def test_a_batch_moves_to_a_device_with_its_pixels_and_pairs(tmp_path, processor):
    _, dataset = read_dataset(pair_pages(tmp_path, 1, 2), processor, pairs=True)
    (row,) = RowPlanner(dataset.sizes, examples_per_step=2, tokens_per_pass=10_000).step(0).ranks[0]
    batch = build_batch(row, dataset, processor)
    moved = batch.to(torch.device("meta"))
    parts = [part for one in (moved, moved.pairs) for part in vars(one).values()]
    tensors = [one for one in (*parts, *moved.pixels.values()) if isinstance(one, torch.Tensor)]
    assert len(tensors) == 8 + len(batch.pixels)
    assert {one.device.type for one in tensors} == {"meta"}
    assert (moved.groups, moved.pairs.examples) == (batch.groups, batch.pairs.examples)


def test_a_picture_that_cannot_be_opened_takes_whole_sets_along(tmp_path, processor):
    _, dataset = read_dataset(pair_pages(tmp_path, 2, 2), processor, pairs=True)
    (tmp_path / "images" / "pairs-0-0.png").write_bytes(b"torn")
    (row,) = RowPlanner(dataset.sizes, examples_per_step=4, tokens_per_pass=10_000).step(0).ranks[0]
    batch = build_batch(row, dataset, processor)
    assert len(batch.left_out) == len(batch.example_ids) == batch.count == 2
    assert sorted(batch.pairs.examples) == [4, 5, 6, 7]
