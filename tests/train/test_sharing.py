"""Shared rows give what separate samples give: loss, gradients, for every strategy."""

import random
from itertools import product

import pytest
import torch
from daily import daily
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_image, make_model, pages, turn, write_data

from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.rows import RowPlanner
from foveal.train.engines.one_process import Engine
from foveal.train.loss import RowLoss
from foveal.train.step import backward_rows


def loss_and_gradients(loaded, dataset, *, share, tokens_per_pass=100_000, weighting="token"):
    """Total loss, weight and gradients of one step that holds all examples."""
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=len(dataset.examples),
        tokens_per_pass=tokens_per_pass,
        share_images=share,
        long_context_tokens=loaded.processor.long_context_tokens,
    )
    module = RowLoss(loaded.model, loaded.family)
    loaded.model.zero_grad()
    total, weight, tokens = 0.0, 0.0, 0
    for row in plan.step(0).ranks[0]:
        batch = build_batch(row, dataset, loaded.processor, weighting)
        value = module(batch)
        value.backward()
        total += value.item()
        weight += float(batch.weights.sum())
        tokens += batch.input_ids.numel()
    gradients = {
        name: one.grad.clone()
        for name, one in loaded.model.named_parameters()
        if one.grad is not None
    }
    return total, weight, tokens, gradients


SAME = 1e-5
"""Of float32 sums in another order, on any processor; a token more or less is a hundredth."""


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=SAME)
    assert one[1] == pytest.approx(other[1])
    assert one[3].keys() == other[3].keys()
    for name, gradient in one[3].items():
        if name.endswith("k_proj.bias"):  # zero but for rounding
            continue
        scale = float(other[3][name].norm()) + 1e-9
        assert float((gradient - other[3][name]).norm()) / scale < SAME, name


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("attention", "strategy"),
    daily(
        *product(("blocks", "sdpa"), ("full", "frozen_vision", "lora")),
        ("eager", "full"),
        beside=[("eager", "frozen_vision"), ("eager", "lora")],
    ),
)
def test_a_shared_row_equals_its_separate_samples(tmp_path, strategy, attention):
    loaded = make_model(tmp_path / "model", attention=attention)
    assign(
        loaded.model, loaded.family, rules_of(strategy), 1e-3, 0.0, LoraSettings(rank=4, alpha=8)
    )
    if strategy == "lora":  # so that the first matrices have gradients too
        for name, one in loaded.model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(one, std=0.02)
    _, dataset = read_dataset(pages(tmp_path, 3, 4), loaded.processor)
    shared = loss_and_gradients(loaded, dataset, share=True)
    separate = loss_and_gradients(loaded, dataset, share=False)
    assert shared[2] < 0.6 * separate[2]  # it did share
    assert_same(shared, separate)


@pytest.mark.parametrize("tokens_per_pass", [200, 400, 1000])
def test_the_result_does_not_depend_on_how_a_step_is_cut(tmp_path, loaded, tokens_per_pass):
    _, dataset = read_dataset(pages(tmp_path, 3, 4), loaded.processor)
    whole = loss_and_gradients(loaded, dataset, share=True)
    cut = loss_and_gradients(loaded, dataset, share=True, tokens_per_pass=tokens_per_pass)
    assert_same(cut, whole)


@pytest.mark.parametrize("tokens_per_pass", [70, 130])
def test_a_step_divides_by_all_of_its_rows_together(tmp_path, loaded, tokens_per_pass):
    # Answers of one word and of eight: a mean of the means of rows would be another number.
    for page in range(3):
        make_image(tmp_path / "images" / f"{page}.png", page)
    asked = [turn(f"{page}?", "yes " * 8**page, [f"{page}.png"]) for page in (0, 1, 0, 1, 0)]
    _, dataset = read_dataset(
        write_data(tmp_path / "data.jsonl", [[one] for one in asked]), loaded.processor
    )
    total, weight, _, gradients = loss_and_gradients(loaded, dataset, share=True)
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=5,
        tokens_per_pass=tokens_per_pass,
        long_context_tokens=loaded.processor.long_context_tokens,
    )
    rows = [build_batch(row, dataset, loaded.processor) for row in plan.step(0).ranks[0]]
    loaded.model.zero_grad()
    engine = Engine("float32", torch.device("cpu"))
    seen = backward_rows(engine, engine.prepare(RowLoss(loaded.model, loaded.family)), rows)
    assert seen.loss == pytest.approx(total / weight, rel=SAME)
    gradient, whole = loaded.model.lm_head.weight.grad, gradients["lm_head.weight"] / weight
    assert float((gradient - whole).norm() / whole.norm()) < SAME
    assert len(rows) > 1


def test_each_example_weighs_the_same_where_the_recipe_says_so(tmp_path, loaded):
    make_image(tmp_path / "images" / "p.png", 1)
    long, short = "one two three four five six seven eight", "yes"
    path = write_data(
        tmp_path / "data.jsonl", [[turn("a?", long, ["p.png"])], [turn("b?", short, ["p.png"])]]
    )
    _, dataset = read_dataset(path, loaded.processor)
    total, weight, _, _ = loss_and_gradients(loaded, dataset, share=True, weighting="example")
    assert weight == pytest.approx(2)
    means = []
    for line in path.read_text().splitlines():
        (tmp_path / "one.jsonl").write_text(line)
        _, alone = read_dataset(tmp_path / "one.jsonl", loaded.processor)
        summed, count, _, _ = loss_and_gradients(loaded, alone, share=True)
        means.append(summed / count)
    assert total == pytest.approx(sum(means), rel=1e-5)


WORDS = ["What", "is", "it", "the", "number", "of", "red", "boxes", "total"]


@st.composite
def data_sets(draw):
    """Examples over a few pictures: 0 to 8 pictures a turn, 1 to 9 questions, several turns."""
    randomness = random.Random(draw(st.integers(0, 10**6)))
    examples = []
    for _ in range(draw(st.integers(1, 3))):
        images = [f"{randomness.randrange(4)}.png" for _ in range(draw(st.integers(0, 8)))]
        start = " ".join(randomness.choices(WORDS, k=randomness.randrange(5)))
        for _ in range(draw(st.integers(1, 9))):
            text = " ".join([start, *randomness.choices(WORDS, k=randomness.randrange(1, 6))])
            turns = [turn(text, " ".join(randomness.choices(WORDS, k=2)), images)]
            for _ in range(randomness.choice([0, 0, 1])):
                more = [f"{randomness.randrange(4)}.png"] * randomness.randrange(2)
                turns.append(turn("And " + randomness.choice(WORDS), "yes", more))
            examples.append(turns)
    return examples


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    for number, size in enumerate([(40, 40), (90, 30), (30, 80), (28, 28)]):
        make_image(folder / "images" / f"{number}.png", number, size)
    return folder


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(examples=data_sets())
def test_any_mix_of_examples_shares_exactly(shelf, loaded, examples):
    _, dataset = read_dataset(write_data(shelf / "data.jsonl", examples), loaded.processor)
    assert_same(
        loss_and_gradients(loaded, dataset, share=True, tokens_per_pass=700),
        loss_and_gradients(loaded, dataset, share=False, tokens_per_pass=700),
    )
