"""Decoders that carry a state from token to token share a prefix, and give what each gives alone."""

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import make_picture, turn, write_data
from tiny_models import write_tiny
from transformers import AutoModelForImageTextToText

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.encode import IGNORED
from foveal.data.rows import Group, Plan, Row
from foveal.errors import ModelError
from foveal.models import cached_rows
from foveal.models.cached_rows import reads_with_cache
from foveal.models.family import load
from foveal.models.hub import load_hub_processor
from foveal.train.loss import RowLoss
from foveal.train.recompute import recompute_blocks

RECURRENT = ["qwen3_5"]


class InDouble:
    """Stands for `torch` in modelling code that casts to float32 by name."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(scope="module")
def in_double():
    """Compute in float64 throughout: what differs then differs by more than rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        for kind in ("qwen3_5.modeling_qwen3_5",):
            patch.setattr(f"transformers.models.{kind}.torch", InDouble())
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of tiny models, written once."""

    @lru_cache
    def make(name):
        return write_tiny(name, tmp_path_factory.mktemp(name))

    return make


def conversations(folder):
    """Examples of every kind: one to five questions a page, several images, turns, words alone."""
    pages = [f"{one}.png" for one in range(4)]
    for number, page in enumerate(pages):
        make_picture(folder / "images" / page, number, (96 + 32 * number, 96))
    questions = [
        ("What number is it?", "one"),
        ("What is written in the second line of this page?", "a red circle and a blue square"),
        ("Yes?", "no"),
        ("Which number stands beside the total?", "it is number one of four"),
        ("Three of them? " * 30, "three"),
    ]
    asked = [[turn(*questions[0], [pages[0]])]]
    asked += [[turn(*one, [pages[1]])] for one in questions]
    asked += [[turn(*one, [pages[2], pages[1]])] for one in questions[1:3]]
    asked += [
        [turn(*questions[3], [pages[3]]), turn("And the other?", "a blue square", [pages[0]])],
        [turn(*questions[1]), turn("Is it?", "yes")],
        [turn(*questions[3])],
        [turn("?", "!")],
    ]
    return write_data(folder / "data.jsonl", asked), asked


def row_losses(loaded, dataset, *, share, tokens_per_pass=100_000):
    """Summed loss, tokens read, and gradients of one step that holds all examples."""
    plan = Plan(
        dataset.sizes,
        examples_per_step=len(dataset.examples),
        tokens_per_pass=tokens_per_pass,
        share_images=share,
        long_context_tokens=None,
    )
    return losses_of(loaded, dataset, plan.step(0).ranks[0])


def losses_of(loaded, dataset, rows):
    module = RowLoss(loaded.model, loaded.family)
    loaded.model.zero_grad()
    total, tokens = 0.0, 0
    for row in rows:
        batch = build_batch(row, dataset, loaded.processor)
        value = module(batch)
        value.backward()
        total += value.item()
        tokens += batch.input_ids.numel()
    return total, tokens, gradients(loaded.model)


def gradients(model):
    named = model.named_parameters()
    return {name: one.grad.clone() for name, one in named if one.grad is not None}


def losses_alone(folder, dataset, asked, pages):
    """What transformers makes of each conversation by itself, through its own processor."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float64
    ).train()
    processor = load_hub_processor(str(folder))
    total = 0.0
    for number, turns in enumerate(asked):
        messages, images = [], []
        for one in turns:
            shown = [Image.open(pages / page).convert("RGB") for page in one["images"]]
            images += shown
            parts = [{"type": "image"} for _ in shown] + [{"type": "text", "text": one["user"]}]
            messages += [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": one["assistant"]}]},
            ]
        text = processor.apply_chat_template(messages)
        inputs = processor(text=[text], images=images or None, return_tensors="pt")
        encoded = dataset.examples[number]
        shapes = [dataset.images[image].shape for image in dataset.image_numbers(number)]
        expanded = encoded.expand(shapes)
        length = len(expanded.ids)  # a template may put more behind the end of the last answer
        assert inputs["input_ids"][0, :length].tolist() == expanded.ids.tolist()
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        learnt = torch.from_numpy(expanded.learnt)
        labels[0, :length][learnt] = inputs["input_ids"][0, :length][learnt]
        logits = model(**inputs).logits
        loss = F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum")
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_same(total, ours, expected_total, expected):
    assert total == pytest.approx(expected_total, rel=1e-12)
    assert ours.keys() == expected.keys()
    largest = max(float(one.norm()) for one in expected.values())
    for name, gradient in expected.items():
        # Of what vanishes by arithmetic, rounding is all there is.
        scale = max(float(gradient.norm()), 1e-9 * largest)
        assert float((ours[name] - gradient).norm()) / scale < 1e-10, name


@pytest.fixture(scope="module", params=RECURRENT)
def case(request, made, in_double, tmp_path_factory):
    """A model in training, a data set, and what transformers alone makes of it."""
    folder = made(request.param)
    path, asked = conversations(tmp_path_factory.mktemp("data"))
    loaded = load(str(folder), None, dtype=torch.float64)
    _, dataset = read_dataset(path, loaded.processor)
    alone = losses_alone(folder, dataset, asked, path.parent / "images")
    return loaded, dataset, alone


@pytest.fixture
def loaded(case):
    case[0].model.train()
    return case[0]


def test_a_shared_row_is_what_transformers_makes_of_each_example_alone(case, loaded):
    _, dataset, alone = case
    total, tokens, found = row_losses(loaded, dataset, share=True)
    _, separate, _ = row_losses(loaded, dataset, share=False)
    assert tokens < separate - 80  # it did share
    assert_same(total, found, *alone)


def test_separate_samples_side_by_side_are_what_transformers_makes_of_each_alone(case, loaded):
    _, dataset, alone = case
    total, _, found = row_losses(loaded, dataset, share=False)
    assert_same(total, found, *alone)


@pytest.mark.parametrize("share", [True, False])
def test_running_layers_again_in_the_backward_pass_changes_nothing(case, share):
    loaded, dataset, alone = case
    recomputed = load(loaded.model.name_or_path, None, dtype=torch.float64)
    recompute_blocks(recomputed.model.train(), recomputed.family)
    runs = []
    for model in (loaded.model, recomputed.model):
        part = next(model.get_decoder().layers[0].children())
        part.register_forward_hook(lambda *_, model=model: runs.append(model))
    row_losses(loaded, dataset, share=share)
    total, _, found = row_losses(recomputed, dataset, share=share)
    assert_same(total, found, *alone)
    assert runs.count(recomputed.model) == 2 * runs.count(loaded.model)  # it did run again
