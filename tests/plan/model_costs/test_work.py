"""What the costs of a pass promise; a real model's own saved tensors and products are the truth."""

from dataclasses import dataclass
from itertools import product

import pytest
import tiny
import tiny_models_more  # noqa: F401  # enters its families
import torch
from daily import daily
from tiny_models import write_tiny
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from foveal.adapt.strategy import assign, hold_frozen_weights, rules_of
from foveal.config import LoraSettings, Recipe
from foveal.data.batch import build_batch
from foveal.errors import ConfigError
from foveal.machine import DTYPES
from foveal.models.loading import load
from foveal.plan.epoch import count_row
from foveal.plan.model_costs.asked import AskedModel, asked_before
from foveal.plan.model_costs.work import Ask
from foveal.plan.question import ask
from foveal.train.loss import RowLoss
from foveal.train.recompute import recompute_blocks

LORA = LoraSettings(rank=4)
MORE = "gemma3", "smolvlm", "internvl"


@dataclass
class Place:
    """A tiny model's folder, and a row of several questions about several images."""

    folder: str
    question: object
    row: object

    @property
    def counts(self):
        return count_row(self.row, self.question.dataset.sizes, self.question._targets)

    def costs(self, strategy, precision, attention, recompute="none", lora=LORA):
        question = self.question
        model = AskedModel(question.config, question.family, question.processor, strategy, lora)
        return asked_before(model).costs(Ask(precision, attention, recompute))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    made = {}

    def place(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "phi3_v":
                tiny.make_model(folder / "model")
            else:
                write_tiny(name, folder / "model")
            data = {"train": str(tiny.pages(folder, 3, 3)), "workers": 0}
            if name == "phi3_v":
                data["num_crops"] = 4
            train = {"examples_per_step": 9, "tokens_per_pass": 10**6}
            tree = {"model": str(folder / "model"), "run": "none", "data": data, "train": train}
            question = ask(Recipe.model_validate(tree), None)
            (row,) = question.planner(1).step(0).ranks[0]
            made[name] = Place(str(folder / "model"), question, row)
        return made[name]

    return place


@pytest.mark.parametrize(
    ("name", "strategy"),
    daily(
        *[("phi3_v", "full"), ("qwen3_vl", "lora")],
        beside=[("phi3_v", "lora"), ("qwen3_vl", "full"), *product(MORE, ("full", "lora"))],
    ),
)
def test_what_a_row_keeps_is_what_autograd_saves(places, name, strategy):
    place = places(name)
    counted = place.costs(strategy, "float32", "blocks").saved_bytes(place.counts)
    assert counted == pytest.approx(saved_bytes(place, strategy, "float32", "blocks"), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi3_v", "qwen3_vl"])
def test_dropout_of_adapters_keeps_what_autograd_saves_for_it(places, name):
    place, often = places(name), LoraSettings(rank=4, dropout=0.3)
    counted, found = (
        [
            place.costs("lora", "float32", "blocks", lora=lora).saved_bytes(place.counts),
            saved_bytes(place, "lora", "float32", "blocks", lora=lora),
        ]
        for lora in (LORA, often)
    )
    more = [with_it - without for without, with_it in zip(counted, found, strict=True)]
    assert more[0] == pytest.approx(more[1], rel=0.01)
    assert more[0] > 0.1 * counted[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi3_v", "qwen3_vl"])
@pytest.mark.parametrize("attention", ["blocks", "sdpa", "eager"])
def test_in_16_bits_it_is_that_without_the_copies_of_weights(places, name, attention):
    place = places(name)
    counted = place.costs("full", "bf16", attention).saved_bytes(place.counts)
    assert counted == pytest.approx(saved_bytes(place, "full", "bf16", attention), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", daily("phi3_v", beside=["qwen3_vl"]))
@pytest.mark.parametrize("strategy", daily("full", beside=["lora"]))
def test_light_keeps_more_than_inputs_and_less_than_all(places, name, strategy):
    place = places(name)
    none, light, blocks = (
        place.costs(strategy, "float32", "blocks", one).saved_bytes(place.counts)
        for one in ("none", "light", "blocks")
    )
    assert blocks < light < none


@pytest.mark.parametrize("name", daily("phi3_v", beside=["qwen3_vl", "gemma3"]))
def test_layers_that_are_run_again_keep_their_inputs_alone(places, name):
    place = places(name)
    counted = place.costs("full", "float32", "blocks", "blocks").saved_bytes(place.counts)
    found = saved_bytes(place, "full", "float32", "blocks", recompute="blocks")
    # The hooks do not see what a layer is told beside its input: the rotation, and masks.
    assert 0.99 * found <= counted <= 1.4 * found
    assert counted < place.costs("full", "float32", "blocks").saved_bytes(place.counts) / 2


@pytest.mark.parametrize("name", daily("phi3_v", beside=["qwen3_vl", *MORE, "llava"]))
def test_what_a_row_multiplies_is_what_torch_counts(places, name):
    place = places(name)
    costs = place.costs("full", "float32", "eager")  # all of attention is products that it counts
    parts = (costs.vision, costs.language, costs.head)
    counted = sum(part.operations.of(place.counts) for part in parts)
    assert costs.language.attention_of_pair == 0
    assert counted == pytest.approx(operations(place, "full", "eager"), rel=0.01)


@pytest.mark.slow
def test_experts_multiply_what_they_do_one_after_the_other(places, capfd):
    place = places("qwen3_vl_moe")
    costs = place.costs("full", "float32", "eager")
    parts = (costs.vision, costs.language, costs.head)
    counted = sum(part.operations.of(place.counts) for part in parts)
    found = operations(place, "full", "eager", experts="eager")
    assert counted == pytest.approx(found, rel=0.01)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", daily("phi3_v", beside=["qwen3_vl"]))
def test_fused_attention_costs_each_pair_what_plain_attention_does(places, name):
    place, counts = places(name), places(name).counts
    plain = place.costs("full", "float32", "eager").language.operations.of(counts)
    fused = place.costs("full", "float32", "sdpa").language
    both = fused.operations.of(counts) + fused.attention_of_pair * counts.tokens**2
    assert both == pytest.approx(plain, rel=0.01)


@pytest.mark.slow
def test_a_fused_kernel_keeps_less_than_masks_do(places):
    place = places("phi3_v")
    flex, blocks, square = (
        place.costs("full", "float32", attention).saved_bytes(place.counts)
        for attention in ("flex", "blocks", "sdpa")
    )
    assert flex < blocks < square


@pytest.mark.slow
def test_a_decoder_with_a_state_is_asked_too(places):
    place = places("qwen3_5")
    assert place.costs("full", "float32", "blocks", "blocks").saved_bytes(place.counts) > 0


@pytest.mark.slow
def test_a_decoder_with_a_state_keeps_less_where_it_is_run_again(places):
    place = places("qwen3_5")
    counted = place.costs("full", "float32", "blocks")
    again = place.costs("full", "float32", "blocks", "blocks")
    assert again.saved_bytes(place.counts) < counted.saved_bytes(place.counts)


def test_what_cannot_run_on_shapes_is_refused_in_a_line(places, monkeypatch):
    place = places("llava")

    def looks(_model, _pixels):
        return float(torch.ones(1)[0].item())

    monkeypatch.setattr(type(place.question.family), "encode_images", lambda *_: looks(*_).none)
    with pytest.raises(ConfigError, match="model_type 'llava' keeps and takes cannot be planned"):
        place.costs("full", "float32", "blocks")


def real_model(place, strategy, precision, attention, recompute="none", lora=LORA):
    loaded = load(place.folder, place.question.recipe.data.image_budget, attention)
    model, family = loaded.model, loaded.family
    assign(model, family, rules_of(strategy), 1e-4, 0.01, lora)
    hold_frozen_weights(model, DTYPES[precision])
    if recompute != "none":
        recompute_blocks(model, family, recompute)
    return model, RowLoss(model, family).train()


def batch_of(place):
    return build_batch(place.row, place.question.dataset, place.question.processor)


def operations(place, strategy, attention, experts=None):
    model, loss = real_model(place, strategy, "float32", attention)
    if experts:
        model.set_experts_implementation(experts)  # torch counts no product of experts in one
    with FlopCounterMode(display=False) as counter:
        loss(batch_of(place)).backward()
    return counter.get_total_flops()


def saved_bytes(place, strategy, precision, attention, recompute="none", lora=LORA):
    """Bytes of distinct storages that the forward pass saves, weights and their copies aside."""
    model, loss = real_model(place, strategy, precision, attention, recompute, lora)
    batch = batch_of(place)
    held = [*model.parameters(), *model.buffers(), *batch.pixels.values()]
    weights = {one.untyped_storage().data_ptr() for one in held}
    shapes = {tuple(one.shape) for one in model.parameters() if one.dim() > 1}
    shapes |= {shape[::-1] for shape in shapes}
    storages, alive = {}, []

    def pack(tensor):
        alive.append(tensor)  # so that no other storage comes to stand at its place
        storage = tensor.untyped_storage()
        copy = tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes
        if storage.data_ptr() not in weights and not copy and tensor.is_floating_point():
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    mixed = precision != "float32"
    with (
        saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        loss(batch)
    return sum(storages.values())
