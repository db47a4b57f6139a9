"""What the planner promises."""

from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from random import Random

import numpy as np
import pytest
from beginnings import prompt_families, sizes_in_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data import rows
from foveal.data.encoded.column_files import Ragged
from foveal.data.row_planning import epochs
from foveal.data.row_planning.balance import balance, spread
from foveal.data.row_planning.groups import Costs, Group, Row, Sizes
from foveal.data.rows import RowPlanner

USER, NEWLINE, END = 7, 8, 9
TOKENS_ALONE = Costs()
COSTS = Costs(pair=5.3e-5, crop=47.0)


@dataclass(frozen=True)
class Example:
    """An example as a person would write it: image k stands in a prompt as -(1 + k)."""

    prompt: tuple[int, ...]
    answer_tokens: int
    later_images: tuple[int, ...] = ()

    @property
    def images(self) -> tuple[int, ...]:
        return (*(-1 - entry for entry in self.prompt if entry < 0), *self.later_images)


def question(image, *words, answer_tokens=2):
    return Example((USER, -1 - image, NEWLINE, *words, END), answer_tokens)


def text(tokens):
    return Example((USER, END), tokens - 2)


def sizes_of(examples, image_tokens=(), image_crops=None):
    def whole(example):
        later = sum(image_tokens[image] for image in example.later_images)
        return len(expand(example.prompt, image_tokens)) + later + example.answer_tokens

    crops = np.array(image_crops if image_crops else [1] * len(image_tokens), np.int32)
    return sizes_in_memory(
        np.array([whole(example) for example in examples], np.int32),
        Ragged.of([example.prompt for example in examples]),
        Ragged.of([example.images for example in examples]),
        np.array(image_tokens, np.int32),
        crops,
    )


def expand(prompt, image_tokens):
    """Write a prompt as the model reads it: every image token has a name of its own."""
    return [
        place
        for entry in prompt
        for place in (
            [entry]
            if entry >= 0
            else [("image", entry, at) for at in range(image_tokens[-1 - entry])]
        )
    ]


def plan_of(sizes, **arguments):
    usual = {"examples_per_step": len(sizes.tokens), "tokens_per_pass": 10_000, "costs": COSTS}
    return RowPlanner(sizes, **(usual | arguments))


def groups_of(step):
    return [group for rank in step.ranks for row in rank for group in row.groups]


def rank_costs(step, sizes, costs):
    return [sum(costs.row(row, sizes) for row in rank) for rank in step.ranks]


def real_common_run(examples, image_tokens, numbers):
    """Compare prompts real token by real token: how many they begin with together."""
    prompts = [expand(examples[number].prompt, image_tokens) for number in numbers]
    run = 0
    while all(run < len(prompt) and prompt[run] == prompts[0][run] for prompt in prompts):
        run += 1
    return run


# Worked by hand


def test_two_questions_of_a_page_share_what_their_prompts_begin_with():
    # Prompts: USER, 100 image tokens, NEWLINE, 1, then 2 or 3: the first 103 tokens are the same.
    sizes = sizes_of([question(0, 1, 2), question(0, 1, 3, 4, answer_tokens=5)], [100])
    step = plan_of(sizes, order="as_is").step(0)
    assert step.ranks == ((Row((Group((0, 1), 103),)),),)
    (group,) = groups_of(step)
    assert group.branch_tokens(sizes) == [4, 8]  # 2, END, 2 of an answer; 3, 4, END, 5 of one
    assert group.tokens(sizes) == 103 + 4 + 8


def test_equal_prompts_are_shared_whole_and_the_answers_never():
    sizes = sizes_of([question(0, 1), question(0, 1)], [10])
    (group,) = groups_of(plan_of(sizes).step(0))
    assert group.prefix_tokens == 14  # USER, 10, NEWLINE, 1, END
    assert group.branch_tokens(sizes) == [2, 2]


def test_a_single_example_is_all_prefix():
    sizes = sizes_of([question(0, 1)], [10])
    assert groups_of(plan_of(sizes).step(0)) == [Group((0,), 16)]


def test_examples_that_differ_before_their_last_image_do_not_share():
    both = Example((USER, -1, NEWLINE, -2, END), 1)
    swapped = Example((USER, -2, NEWLINE, -1, END), 1)
    other_words = Example((USER, -1, END, -2, END), 1)
    sizes = sizes_of([both, swapped, other_words, both], [5, 5])
    assert {group.examples for group in groups_of(plan_of(sizes, order="as_is").step(0))} == {
        (0, 3),
        (1,),
        (2,),
    }


def test_text_does_not_share_even_when_it_is_the_same():
    sizes = sizes_of([text(5), text(5), Example((USER, END), 3, later_images=(0,))], [4])
    assert len(groups_of(plan_of(sizes).step(0))) == 3


def test_long_and_short_examples_of_an_image_do_not_share():
    sizes = sizes_of([question(0, 1), question(0, 2, answer_tokens=90), question(0, 3)], [10])
    assert sizes.tokens.tolist() == [16, 104, 16]
    step = plan_of(sizes, order="as_is", long_context_tokens=16).step(0)
    assert {group.examples for group in groups_of(step)} == {(0, 2), (1,)}
    step = plan_of(sizes, order="as_is", long_context_tokens=15).step(0)
    assert {group.examples for group in groups_of(step)} == {(0, 1, 2)}


def test_a_group_over_the_budget_is_cut_and_each_piece_has_the_prefix_again():
    # Together: prefix 102 (USER, 100, NEWLINE), branches of 10; 131 tokens take two of them, for
    # 132 take three. Two that also have their first word in common share 103.
    words = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]
    sizes = sizes_of([question(0, *both, answer_tokens=7) for both in words], [100])
    step = plan_of(sizes, order="as_is", tokens_per_pass=131).step(0)
    assert groups_of(step) == [Group((0, 1), 103), Group((2, 3), 103), Group((4,), 112)]
    assert [row.tokens(sizes) for row in step.ranks[0]] == [121, 121, 112]


def test_an_example_over_the_budget_stays_alone():
    sizes = sizes_of([text(50), text(3), text(3), text(3)])
    step = plan_of(sizes, order="as_is", tokens_per_pass=10).step(0)
    assert [row.examples for row in step.ranks[0]] == [(0,), (1, 2, 3)]


def test_rows_are_filled_where_a_group_fits_best():
    # Longest first into rows of 10: 6, 5 beside it no; 4 closes the 6, 3 joins the 5.
    sizes = sizes_of([text(3), text(6), text(4), text(5)])
    step = plan_of(sizes, order="as_is", tokens_per_pass=10).step(0)
    assert {row.examples for row in step.ranks[0]} == {(1, 2), (3, 0)}


def test_examples_of_an_image_meet_in_a_row_when_they_do_not_share():
    asked = [question(image, word) for word in range(2) for image in range(3)]
    sizes = sizes_of(asked, [10, 10, 10])
    step = plan_of(sizes, order="as_is", tokens_per_pass=32, share_images=False).step(0)
    assert [row.images(sizes) for row in step.ranks[0]] == [{0}, {1}, {2}]
    assert all(group.prefix_tokens == 16 for group in groups_of(step))


def test_a_group_joins_its_image_before_it_fills_a_row():
    # Rows of 40 hold a text of 22 and a question of 20; a question of 16 fits both.
    sizes = sizes_of([text(22), question(0, 1, answer_tokens=6), question(0, 2)], [10])
    step = plan_of(sizes, order="as_is", tokens_per_pass=40, share_images=False).step(0)
    assert {row.examples for row in step.ranks[0]} == {(0,), (1, 2)}


def test_trading_finds_the_even_deal_that_longest_first_misses():
    # Longest first gives 5 + 3 and 4 + 3 + 3; changing a 4 for a 3 makes it 9 and 9.
    sizes = sizes_of([text(tokens) for tokens in (5, 4, 3, 3, 3)])
    step = plan_of(sizes, order="as_is", world_size=2, costs=TOKENS_ALONE).step(0)
    assert rank_costs(step, sizes, TOKENS_ALONE) == [9, 9]


def test_one_image_with_many_questions_is_parted_among_ranks():
    # Prefix 102, 64 branches of 100: alone 6502; the best of three ranks has 22 branches.
    sizes = sizes_of([question(0, word, answer_tokens=98) for word in range(64)], [100])
    step = plan_of(sizes, world_size=3, costs=TOKENS_ALONE).step(0)
    assert max(rank_costs(step, sizes, TOKENS_ALONE)) <= 102 + 22 * 100
    assert [sum(len(row.groups) for row in rank) for rank in step.ranks] == [1, 1, 1]
    assert sum(len(group.examples) for group in groups_of(step)) == 64


def test_a_group_is_not_parted_where_nothing_is_won():
    # The questions are 3 tokens of 1,000: another rank would pay the page again for nothing.
    sizes = sizes_of([question(0, word, answer_tokens=1) for word in range(4)], [1000])
    step = plan_of(sizes, world_size=2).step(0)
    assert sorted(len(row.groups) for rank in step.ranks for row in rank) == [0, 1]


def test_ranks_without_work_get_empty_rows():
    sizes = sizes_of([text(8), text(8), text(8)])
    step = plan_of(sizes, world_size=2, tokens_per_pass=10).step(0)
    assert [[len(row.groups) for row in rank] for rank in step.ranks] == [[1, 1], [1, 0]]


def test_the_price_of_a_row_is_tokens_pairs_and_crops():
    sizes = sizes_of([question(0, 1), question(0, 2)], [10], [7])
    row = Row((Group((0, 1), 12),))  # USER, 10, NEWLINE; then branches of 4
    # Pairs: 12 * 13 / 2 in the prefix; each branch 4 * 12 across and 4 * 5 / 2 in itself.
    pairs = 78 + 2 * (48 + 10)
    costs = Costs(pair=0.5, crop=100.0)
    assert costs.row(row, sizes) == 20 + 0.5 * pairs + 700
    apart = Row((Group((0,), 16), Group((1,), 16)))
    assert costs.row(apart, sizes) == 32 + 0.5 * 2 * 136 + 700  # the tower sees the page once
    assert costs.row(Row(apart.groups[:1]), sizes) == 16 + 0.5 * 136 + 700
    assert costs.row(Row(), sizes) == 0


def test_the_order_of_a_seed_never_changes():
    sizes = sizes_of([question(image, word) for image in range(3) for word in range(2)], [4] * 3)
    plan = plan_of(sizes, examples_per_step=2, seed=5)
    orders = [[plan.examples(step).tolist() for step in range(3 * e, 3 * e + 3)] for e in range(2)]
    assert orders == [[[4, 5], [0, 1], [3, 2]], [[5, 4], [1, 0], [3, 2]]]


def test_file_order_is_kept_when_asked_for():
    sizes = sizes_of([text(3)] * 7)
    plan = plan_of(sizes, examples_per_step=3, order="as_is")
    found = [plan.examples(step).tolist() for step in range(6)]
    assert found == [[0, 1, 2], [3, 4, 5], [6]] * 2


def test_questions_of_a_page_stay_in_a_step_that_has_room_for_them():
    # 40 pages with 1 to 4 questions, in steps of 8: a border that cuts a page is a rare thing.
    counts = [1 + page % 4 for page in range(40)]
    asked = [question(page, word) for page, count in enumerate(counts) for word in range(count)]
    sizes = sizes_of(asked, [4] * 40)
    plan = plan_of(sizes, examples_per_step=8)
    assert plan.steps_per_epoch == 13  # 100 questions
    groups = sum(len(groups_of(plan.step(step))) for step in range(13))
    assert groups <= 41


def test_a_page_with_more_questions_than_a_step_goes_on_in_the_next():
    sizes = sizes_of([question(0, word) for word in range(10)], [4])
    plan = plan_of(sizes, examples_per_step=4)
    assert [len(groups_of(plan.step(step))[0].examples) for step in range(3)] == [4, 4, 2]


def test_a_late_step_needs_none_of_the_steps_before_it():
    sizes = sizes_of([question(image // 3, image) for image in range(20)], [6] * 7)
    walked = plan_of(sizes, examples_per_step=6)
    for step in range(41):
        last = walked.step(step)
    assert plan_of(sizes, examples_per_step=6).step(40) == last
    assert len(groups_of(walked.step(10**15))) > 0  # a replay would never come back


def test_sizes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="2 lengths, 1 prompts and 1 lists of images"):
        Sizes(
            np.array([3, 4]),
            Ragged.of([[]]),
            *[np.array([0])] * 7,
            prompts=Ragged.of([[1]]),
        )
    with pytest.raises(ValueError, match="at least one example"):
        plan_of(sizes_of([]), examples_per_step=1)


def test_families_compare_the_whole_beginning():
    prompts = [[1, -1, 5], [1, -1, 6], [1, -2, 5], [1], [1], [], [], [-1, 1], [1, -1, 5, -1], [-1]]
    found = prompt_families(Ragged.of(prompts)).tolist()
    same = {(i, j) for i in range(10) for j in range(i) if found[i] == found[j]}
    assert same == {(1, 0), (9, 7)}


# Whatever the examples

IMAGE_TOKENS = [3, 5, 8, 13]
IMAGE_CROPS = [2, 3, 5, 7]
TEXT_ALONE, *IMAGES_FIRST = [(), (-1,), (1, -1), (1, -1, -2), (-3, 1, -4), (-3, 2, -4)]
beginnings = st.sampled_from([TEXT_ALONE, *IMAGES_FIRST * 2])
words = st.lists(st.sampled_from([1, 1, 1, 2]), max_size=6).map(tuple)
some_examples = st.builds(
    Example,
    prompt=st.tuples(beginnings, words).map(lambda parts: parts[0] + parts[1]),
    answer_tokens=st.sampled_from([1, 2, 5, 20, 60]),
    later_images=st.lists(st.integers(0, 3), max_size=2).map(tuple),
)
worlds = st.fixed_dictionaries(
    {
        "examples_per_step": st.integers(1, 40),
        "tokens_per_pass": st.integers(1, 150),
        "world_size": st.integers(1, 5),
        "seed": st.integers(0, 3),
        "share_images": st.booleans(),
        "order": st.sampled_from(["shuffled", "as_is"]),
        "long_context_tokens": st.sampled_from([None, None, 25]),
        "costs": st.sampled_from([COSTS, TOKENS_ALONE]),
    }
)


def cases(promise):
    many = st.lists(some_examples, min_size=1, max_size=40)
    return settings(max_examples=50, deadline=None)(given(examples=many, world=worlds)(promise))


def sized(examples):
    return sizes_of(examples, IMAGE_TOKENS, IMAGE_CROPS)


@cases
def test_every_example_comes_once_an_epoch_and_every_rank_has_as_many_rows(examples, world):
    plan = RowPlanner(sized(examples), **world)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch
        steps = [plan.step(first + index) for index in range(plan.steps_per_epoch)]
        seen = [one for step in steps for group in groups_of(step) for one in group.examples]
        assert sorted(seen) == list(range(len(examples)))
        for index, step in enumerate(steps):
            here = [one for group in groups_of(step) for one in group.examples]
            assert sorted(here) == sorted(plan.examples(first + index).tolist())
            assert len(here) == plan.examples_per_step or index == plan.steps_per_epoch - 1
            assert len(step.ranks) == plan.world_size
            assert len({len(rank) for rank in step.ranks}) == 1
            assert any(rank[-1].groups for rank in step.ranks)  # no pass where all ranks idle
            for rank in step.ranks:
                filled = [bool(row.groups) for row in rank]
                assert filled == sorted(filled, reverse=True)


@cases
def test_rows_keep_to_the_budget_unless_one_example_is_over_it(examples, world):
    sizes = sized(examples)
    for row in chain.from_iterable(RowPlanner(sizes, **world).step(0).ranks):
        assert row.tokens(sizes) <= world["tokens_per_pass"] or len(row.examples) == 1


@cases
def test_groups_share_exactly_what_a_slow_comparison_of_real_tokens_finds(examples, world):
    sizes = sized(examples)
    limit = world["long_context_tokens"] or 10**9
    for group in groups_of(RowPlanner(sizes, **world).step(0)):
        if len(group.examples) == 1:
            assert group.prefix_tokens == sizes.tokens[group.examples[0]]
            continue
        assert world["share_images"]
        assert len({int(sizes.tokens[one]) > limit for one in group.examples}) == 1
        run = real_common_run(examples, IMAGE_TOKENS, group.examples)
        assert group.prefix_tokens == run
        for one in group.examples:
            prompt = expand(examples[one].prompt, IMAGE_TOKENS)
            after_images = [at + 1 for at, place in enumerate(prompt) if isinstance(place, tuple)]
            assert 0 < max(after_images) <= run


@pytest.mark.parametrize("seed", [4, 182, 228, 257, 424])
def test_nothing_is_lost_or_mismeasured_where_bundles_are_parted_and_then_swapped(seed):
    # Few pages with many questions on up to six ranks; these seeds part, join and swap them.
    random = Random(seed)
    examples = [
        question(page, word // 3, word, answer_tokens=random.randint(1, 60))
        for page in range(random.randint(1, 4))
        for word in range(random.randint(1, 12))
    ]
    examples += [text(random.randint(2, 90)) for _ in range(random.randint(0, 6))]
    image_tokens = [random.randint(1, 40) for _ in range(4)]
    sizes = sizes_of(examples, image_tokens)
    plan = plan_of(sizes, world_size=random.randint(2, 6), costs=TOKENS_ALONE)
    groups = groups_of(plan.step(0))
    assert sorted(one for group in groups for one in group.examples) == list(range(len(examples)))
    for group in groups:
        if len(group.examples) > 1:
            run = real_common_run(examples, image_tokens, group.examples)
            assert group.prefix_tokens == run


@cases
def test_all_that_may_share_does_on_one_rank_with_a_wide_budget(examples, world):
    sizes = sized(examples)
    world |= {"world_size": 1, "tokens_per_pass": 10_000, "share_images": True}
    plan = RowPlanner(sizes, **world)
    limit = world["long_context_tokens"] or 10**9
    beginnings = set()
    for one in plan.examples(0).tolist():
        prompt = examples[one].prompt
        shown = [at for at, entry in enumerate(prompt) if entry < 0]
        is_long = bool(sizes.tokens[one] > limit)
        beginnings.add((prompt[: shown[-1] + 1], is_long) if shown else one)
    assert len(groups_of(plan.step(0))) == len(beginnings)


@cases
def test_a_plan_is_the_same_wherever_it_is_made(examples, world):
    one, other = RowPlanner(sized(examples), **world), RowPlanner(sized(examples), **world)
    assert [one.step(at) for at in (0, 1, 5)] == [other.step(at) for at in (0, 1, 5)]


@cases
def test_the_examples_of_a_step_depend_on_neither_sharing_nor_ranks(examples, world):
    changed = world | {
        "share_images": not world["share_images"],
        "world_size": 7,
        "tokens_per_pass": 33,
        "long_context_tokens": 9,
    }
    one, other = RowPlanner(sized(examples), **world), RowPlanner(sized(examples), **changed)
    for at in range(one.steps_per_epoch):
        assert one.examples(at).tolist() == other.examples(at).tolist()


@cases
def test_a_shuffled_family_is_never_torn_apart(examples, world):
    sizes = sized(examples)
    plan = RowPlanner(sizes, **(world | {"order": "shuffled"}))
    order = np.concatenate([plan.examples(at) for at in range(plan.steps_per_epoch)])
    runs = prompt_families(sizes.prompts)[order]
    assert 1 + np.count_nonzero(np.diff(runs)) == len(set(runs.tolist()))


def test_two_epochs_and_two_seeds_have_different_orders():
    sizes = sizes_of([text(3)] * 50)
    orders = [
        tuple(plan_of(sizes, seed=seed).examples(epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("seed", range(3))
def test_eight_ranks_are_within_a_tenth_of_each_other_on_a_mix_of_lengths(seed):
    # Pages with about four questions, memes with one, and text, 128 examples a step.
    random = np.random.default_rng(seed)
    examples, image_tokens, image_crops = [], [], []
    while len(examples) < 1024:
        kind = random.integers(3)
        if kind == 2:
            examples.append(text(int(random.integers(50, 1500))))
            continue
        tokens = int(random.choice([757, 1921, 2209, 2509]))
        image_tokens.append(tokens)
        image_crops.append(1 + tokens // 156)
        for _ in range(int(random.integers(1, 8)) if kind == 0 else 1):
            words = random.integers(10, 2000, random.integers(10, 60)).tolist()
            examples.append(question(len(image_tokens) - 1, *words))
    sizes = sizes_of(examples[:1024], image_tokens, image_crops)
    plan = plan_of(sizes, examples_per_step=128, world_size=8, tokens_per_pass=8192)
    for index in range(plan.steps_per_epoch):
        loads = rank_costs(plan.step(index), sizes, plan.costs)
        assert max(loads) <= 1.1 * np.mean(loads)


def a_mix(count, seed):
    """Pages with about four questions, memes with one, and text."""
    random = Random(seed)
    examples, image_tokens = [], []
    while len(examples) < count:
        kind = random.randrange(3)
        if kind == 2:
            examples.append(text(random.randint(50, 1500)))
            continue
        image_tokens.append(random.choice([757, 1921, 2209, 2509]))
        for _ in range(random.randint(1, 8) if kind == 0 else 1):
            words = random.choices(range(10, 2000), k=random.randint(10, 60))
            examples.append(question(len(image_tokens) - 1, *words))
    crops = [1 + tokens // 156 for tokens in image_tokens]
    return sizes_of(examples[:count], image_tokens, crops)


@pytest.mark.parametrize(
    ("world_size", "stored"), [(1, "2b4412005c269320"), (8, "9a10f72cbd0be644")]
)
def test_the_plan_of_up_to_eight_ranks_never_changes(world_size, stored):
    # Worked out by the first version that could train: runs of that time go on with the same rows.
    plan = plan_of(
        a_mix(1500, 0),
        examples_per_step=128,
        tokens_per_pass=8192,
        world_size=world_size,
        seed=7,
        long_context_tokens=4096,
    )
    steps = [plan.step(index) for index in range(2 * plan.steps_per_epoch)]
    said = [
        [[[(group.examples, group.prefix_tokens) for group in row.groups] for row in rank]]
        for step in steps
        for rank in step.ranks
    ]
    assert blake2b(repr(said).encode(), digest_size=8).hexdigest() == stored


@pytest.mark.parametrize(("world_size", "examples_a_rank"), [(12, 16), (64, 16), (256, 8)])
def test_many_ranks_each_plan_their_own_rows_of_one_step_and_are_balanced(
    world_size, examples_a_rank
):
    count = world_size * examples_a_rank
    sizes = a_mix(count + count // 3, 1)
    plan = plan_of(sizes, examples_per_step=count, tokens_per_pass=8192, world_size=world_size)
    for index in range(plan.steps_per_epoch):
        step = plan.step(index)
        passes = len(step.ranks[0])
        for rank in (0, 7, 8, world_size - 1):
            own = plan.rows_of(index, rank)
            assert own + (Row(),) * (passes - len(own)) == step.ranks[rank]
        here = [one for group in groups_of(step) for one in group.examples]
        assert sorted(here) == sorted(plan.examples(index).tolist())
    loads = rank_costs(plan.step(0), sizes, plan.costs)
    assert max(loads) <= 1.1 * np.mean(loads)


def test_an_image_with_very_many_questions_is_shared_out_to_all_blocks_of_ranks():
    # Prefix 102, 640 branches of 100: a block of eight has about 160 of them, a rank 20.
    sizes = sizes_of([question(0, word, answer_tokens=98) for word in range(640)], [100])
    step = plan_of(sizes, world_size=32, costs=TOKENS_ALONE).step(0)
    loads = rank_costs(step, sizes, TOKENS_ALONE)
    assert max(loads) <= 1.1 * np.mean(loads)


def test_a_rank_among_many_plans_its_own_block_alone(monkeypatch):
    balanced = []
    monkeypatch.setattr(rows, "balance", lambda *given: balanced.append(given) or balance(*given))
    plan = plan_of(a_mix(512, 2), world_size=64, tokens_per_pass=8192)
    assert plan.is_agreed_upon
    plan.rows_of(0, 17)
    ((bundles, ranks),) = balanced
    assert ranks == 8
    assert sum(len(bundle.members) for bundle in bundles) < 512 // 4
    assert not plan_of(a_mix(64, 2), world_size=8).is_agreed_upon


def test_work_is_spread_by_its_cost_over_blocks_of_as_many_ranks_as_each_has():
    # The costliest first: 9 and 7 take a block each, 6 and 5 the lighter one; of 8 and 4 ranks the
    # first has twice the work.
    assert spread(np.array([5.0, 9, 6, 7]), [1, 1]).tolist() == [0, 0, 1, 1]
    blocks = spread(np.ones(12), [8, 4])
    assert np.bincount(blocks).tolist() == [8, 4]


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_the_order_does_not_depend_on_how_many_families_are_looked_at_together(
    monkeypatch, at_once
):
    counts = [3, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 2, 1, 1, 1]
    asked = [question(page, word) for page, count in enumerate(counts) for word in range(count)]
    sizes = sizes_of(asked, [4] * len(counts))
    plans = [plan_of(sizes, examples_per_step=4, seed=seed) for seed in range(6)]
    whole = [plan.examples(0).tolist() + plan.examples(3).tolist() for plan in plans]
    monkeypatch.setattr(epochs, "AT_ONCE", at_once)
    plans = [plan_of(sizes, examples_per_step=4, seed=seed) for seed in range(6)]
    assert [plan.examples(0).tolist() + plan.examples(3).tolist() for plan in plans] == whole


def test_the_order_of_an_epoch_is_worked_out_once_and_those_of_old_epochs_go(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "WORTH_KEEPING", 1)
    plain = sizes_of([question(page // 3, page) for page in range(30)], [4] * 10)
    kept = replace(plain, folder=tmp_path)
    drawn = []
    usual = epochs.shuffled
    monkeypatch.setattr(rows, "shuffled", lambda *given: drawn.append(1) or usual(*given))
    wanted = [plan_of(plain, seed=3).examples(epoch).tolist() for epoch in range(7)]
    drawn.clear()
    for _ in range(2):  # as two processes would
        assert [plan_of(kept, seed=3).examples(6).tolist() for _ in range(2)] == [wanted[6]] * 2
    assert len(drawn) == 1
    assert [plan_of(kept, seed=3).examples(epoch).tolist() for epoch in range(7)] == wanted
    assert plan_of(kept, seed=4).examples(0).tolist() != wanted[0]
    assert len(list(tmp_path.glob("order-*"))) == rows.ORDERS_KEPT
