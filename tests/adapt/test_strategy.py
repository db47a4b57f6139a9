"""Rules decide which weights learn, the first that matches."""

import io
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from tiny import make_model

from foveal.adapt.adapters import merge_adapters
from foveal.adapt.strategy import assign, rules_of, strategy_table, summarize
from foveal.config import LoraSettings, Rule
from foveal.errors import ConfigError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def loaded(made):
    return replace(made, model=deepcopy(made.model))


def learning(loaded, strategy, **settings):
    rules = rules_of(strategy)
    chosen = assign(loaded.model, loaded.family, rules, 1e-3, 0.01, LoraSettings(**settings))
    return {one.name: one for one in chosen if one.learn}, chosen


def test_full_learns_all_but_what_a_forward_pass_never_reads(loaded):
    learnt, chosen = learning(loaded, "full")
    fixed = {one.name for one in chosen if not one.learn}
    tower = "model.vision_embed_tokens.img_processor.vision_model."
    assert fixed == {
        name
        for name, _ in loaded.model.named_parameters()
        if name.startswith((tower + "encoder.layers.2.", tower + "post_layernorm."))
    }
    assert len(fixed) == 18
    assert all(one.learning_rate == 1e-3 and one.weight_decay == 0.01 for one in learnt.values())


def test_frozen_vision_fixes_the_tower_alone(loaded):
    learnt, _ = learning(loaded, "frozen_vision")
    parts = {one.part_name.partition(".")[0] for one in learnt.values()}
    assert parts == {"projector", "language"}
    assert "model.embed_tokens.weight" in learnt  # the token embedding belongs to language
    assert learnt["model.vision_embed_tokens.glb_GN"].learning_rate == 2e-5


def test_lora_learns_adapters_on_every_linear_layer_that_is_used(loaded):
    learnt, _ = learning(loaded, "lora", rank=4)
    assert all(".lora_" in name for name in learnt)
    layers = {name.split(".lora_")[0].removesuffix(".base_layer") for name in learnt}
    assert "lm_head" in layers
    assert "model.layers.0.self_attn.qkv_proj" in layers
    assert "model.vision_embed_tokens.img_projection.0" in layers
    tower = "model.vision_embed_tokens.img_processor.vision_model.encoder.layers."
    assert f"{tower}0.mlp.fc1" in layers
    assert not any(layer.startswith(f"{tower}2.") for layer in layers)


def test_a_merged_adapter_computes_what_it_did_beside_its_layer(loaded):
    learning(loaded, "lora", rank=4)
    for name, one in loaded.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(one, std=0.05)
    ids = torch.arange(3, 20)[None]
    loaded.model.eval()
    with torch.no_grad():
        beside = loaded.model(ids).logits
        merge_adapters(loaded.model)
        merged = loaded.model(ids).logits
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())


def test_the_first_rule_that_matches_decides(loaded):
    rules = (
        Rule(match="language.layers.0.*", learn=False),
        Rule(match="language.*", learning_rate=5e-4, weight_decay=0.0),
    )
    learnt, _ = learning(loaded, rules)
    assert "model.layers.0.mlp.down_proj.weight" not in learnt
    assert learnt["model.layers.1.mlp.down_proj.weight"].learning_rate == 5e-4
    assert learnt["lm_head.weight"].weight_decay == 0.0
    assert not any("vision_embed" in name for name in learnt)  # no rule: it stays as it is


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((Rule(match="*"), Rule(match="vision.*")), r"rule 2 \(vision\.\*\) decides for no weight"),
        ((Rule(match="langage.*"), Rule(match="*")), r"rule 1 \(langage\.\*\) decides for no"),
        ((Rule(match="*", learn=False),), "no weight learns"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(loaded, rules, said):
    with pytest.raises(ConfigError, match=said):
        learning(loaded, rules)


@pytest.mark.parametrize("strategy", ["full", "frozen_vision", "lora"])
def test_the_table_counts_every_parameter_once(loaded, strategy):
    _, chosen = learning(loaded, strategy)
    total = sum(one.numel() for one in loaded.model.parameters())
    assert sum(summarize(chosen).values()) == total


RANKS = (
    Rule(match="vision.*", learn=False, adapter=True, rank=2, alpha=8, learning_rate=2e-4),
    Rule(match="projector.*", learn=False, adapter=True, rank=8),
    Rule(match="*", learn=False, adapter=True),
)


def test_a_rule_gives_its_adapters_a_rank_and_an_alpha_of_their_own(loaded):
    learnt, chosen = learning(loaded, RANKS, rank=4, alpha=6)
    sizes = {"vision": (2, 8, 4.0), "projector": (8, 6, 0.75), "language": (4, 6, 1.5)}
    for one in learnt.values():
        assert (one.rank, one.alpha, one.scale) == sizes[one.part_name.partition(".")[0]]
        parameter = loaded.model.get_parameter(one.name)
        assert one.rank == parameter.shape[0 if ".lora_A." in one.name else 1]
    assert {fate.rank for fate in summarize(chosen)} == {2, 8, 4, None}


def test_an_adapter_adds_what_it_says_times_its_scale(loaded):
    learning(loaded, RANKS, rank=4, alpha=6)
    layer = loaded.model.model.layers[1].mlp.down_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    states = torch.randn(3, layer.in_features)
    change = states @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    expected = layer.base_layer(states) + 6 / 4 * change
    torch.testing.assert_close(layer(states), expected, rtol=1e-4, atol=1e-5)


def test_rslora_divides_alpha_by_the_square_root_of_the_rank(loaded):
    learnt, _ = learning(loaded, RANKS, rank=4, alpha=6, rslora=True)
    assert {one.scale for one in learnt.values()} == {6 / 8**0.5, 6 / 2, 8 / 2**0.5}


def test_dora_learns_a_length_for_each_row_of_a_weight(loaded):
    learnt, _ = learning(loaded, "lora", rank=4, dora=True)
    lengths = [name for name in learnt if ".lora_magnitude_vector." in name]
    assert len(lengths) == sum(".lora_A." in name for name in learnt)
    layer = loaded.model.lm_head
    expected = layer.base_layer.weight.norm(dim=1)
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, expected)


@pytest.mark.parametrize("initialization", ["default", "gaussian"])
def test_a_model_with_fresh_adapters_is_still_the_model_that_it_was(loaded, initialization):
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = loaded.model.eval()(ids).logits
        learning(loaded, "lora", rank=4, initialization=initialization)
        assert torch.equal(loaded.model.eval()(ids).logits, before)


def test_first_values_are_those_that_were_asked_for(loaded):
    learning(loaded, "lora", rank=8, initialization="gaussian")
    first = loaded.model.lm_head.lora_A["default"].weight
    assert float(first.detach().std()) == pytest.approx(1 / 8, rel=0.2)  # peft's: 1 / rank


def test_orthogonal_first_values_of_a_layer_lie_across_each_other(loaded):
    learning(loaded, "lora", rank=4, initialization="orthogonal")
    layer = loaded.model.lm_head
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    # The odd rows of one basis times the even ones.
    assert float(change.detach().abs().max()) < 1e-6


def test_orthogonal_first_values_need_even_ranks(loaded):
    with pytest.raises(ConfigError, match=r"needs even ranks, .* has 3"):
        learning(loaded, "lora", rank=3, initialization="orthogonal")


def test_the_table_shows_rank_alpha_and_scale(loaded):
    _, chosen = learning(loaded, RANKS, rank=4, alpha=6)
    said = io.StringIO()
    Console(file=said, width=100).print(strategy_table(chosen))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in said.getvalue().split("\n")
    ]
    count = sum(one.elements for one in chosen if one.learn and one.part_name.startswith("vision."))
    assert ["vision", "adapter", f"{count:,}", "2.0e-04", "0.01", "2", "8", "4"] in cells
    assert [row[-1] for row in cells if row[:2] == ["language", "frozen"]] == ["-"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"quantize": True}, "weights in 4 bits cannot learn"),
        ({"rank": 4}, "add adapter: true"),
        ({"alpha": 4.0, "learn": False}, "add adapter: true"),
    ],
)
def test_settings_of_a_rule_that_exclude_each_other_are_refused(rule, said):
    with pytest.raises(ValidationError, match=said):
        Rule(match="*", **rule)
