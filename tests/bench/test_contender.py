"""What the comparison with the recipe's way promises: the same numbers, got the recipe's way."""

import copy

import pytest
import torch
from foveal_bench.contender import RecipeWay, recipe_inputs
from foveal_bench.random_page import (
    IMAGE,
    SIZES,
    LetterProcessor,
    encode_page,
    make_model,
    make_random_page,
)
from PIL import Image

from foveal.adapt.strategy import assign, rules_of
from foveal.data.batch import build_batch
from foveal.data.example import Example, Turn
from foveal.data.rows import RowPlanner
from foveal.models.phi3_vision.seam import FAMILY
from foveal.train.loss import RowLoss

SIZE = SIZES["tiny"]
PROCESSOR = LetterProcessor(SIZE)
STRATEGIES = ("full", "frozen_vision", "lora")


@pytest.fixture(params=STRATEGIES)
def both(request):
    """Our model and the recipe's, with equal weights, none of them zero."""
    model = make_model(SIZE)
    assign(model, FAMILY, rules_of(request.param), 1e-4, 0.01)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    way = RecipeWay(copy.deepcopy(model)).train()
    return RowLoss(model, FAMILY).train(), way


def ours(loss, dataset):
    examples = len(dataset.examples)
    plan = RowPlanner(
        dataset.sizes, examples_per_step=examples, tokens_per_pass=SIZE.tokens_per_pass
    )
    rows = [build_batch(row, dataset, PROCESSOR) for row in plan.step(0).ranks[0]]
    assert len(rows) == 1
    mean = loss(rows[0]) / rows[0].weights.sum()
    mean.backward()
    return mean.item()


def the_recipes(way, dataset):
    examples = range(len(dataset.examples))
    losses = [way(recipe_inputs(dataset, one, PROCESSOR)) / len(examples) for one in examples]
    sum(losses).backward()
    return sum(losses).item()


def gradients(model):
    # What all keys have in common cancels in a softmax: noise on both sides.
    return {
        name: weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None and not name.endswith("k_proj.bias")
    }


def assert_same_gradients(loss, way):
    expected, got = gradients(way.model), gradients(loss.model)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.dist(got[name], gradient) <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("questions", [1, 4])
def test_the_recipes_way_gives_our_loss_and_our_gradients(both, questions, tmp_path):
    loss, way = both
    dataset = make_random_page(SIZE, questions, tmp_path)
    assert ours(loss, dataset) == pytest.approx(the_recipes(way, dataset), rel=1e-5)
    assert_same_gradients(loss, way)


def test_crops_that_only_pad_a_small_picture_change_nothing(both, tmp_path):
    loss, way = both
    Image.radial_gradient("L").resize((840, 600)).convert("RGB").save(tmp_path / IMAGE)
    turn = Turn(images=(IMAGE,), user="what is round", assistant="ring")
    dataset = encode_page([Example(id="small", conversations=(turn,))], SIZE, tmp_path)
    fact = dataset.images[0]
    assert fact.shape.grid == (3, 4)
    assert recipe_inputs(dataset, 0, PROCESSOR).pixel_values.shape[:2] == (1, 17)
    assert ours(loss, dataset) == pytest.approx(the_recipes(way, dataset), rel=1e-5)
    assert_same_gradients(loss, way)


def test_the_recipes_way_pays_for_what_the_recipe_pays_for(tmp_path):
    dataset = make_random_page(SIZE, 1, tmp_path)
    way = RecipeWay(make_model(SIZE)).train()
    tower = way.model.model.vision_embed_tokens.img_processor.vision_model
    passes, logits = [], []
    for layer in (*tower.encoder.layers, *way.model.model.layers):
        # Recomputing calls `forward` alone, so what is inside a block counts both times.
        layer.self_attn.register_forward_hook(lambda block, *_: passes.append(block))
        assert layer.self_attn.config._attn_implementation == "eager"
    way.model.lm_head.register_forward_hook(lambda _head, _in, out: logits.append(out.shape))
    inputs = recipe_inputs(dataset, 0, PROCESSOR)
    way(inputs).backward()
    assert logits == [(1, inputs.input_ids.shape[1], SIZE.vocabulary)]
    counts = [passes.count(layer.self_attn) for layer in tower.encoder.layers]
    assert counts == [2] * (SIZE.tower_layers - 1) + [1]  # the last is run for nothing
    assert [passes.count(layer.self_attn) for layer in way.model.model.layers] == [2, 2]
