"""Rules decide which weights learn, the first that matches."""

import pytest
from tiny import make_model

from foveal.adapt.adapters import merge_adapters
from foveal.adapt.strategy import assign, rules_of, summarize
from foveal.config import LoraSettings, Rule
from foveal.errors import ConfigError


@pytest.fixture
def loaded(tmp_path):
    return make_model(tmp_path / "model")


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
    import torch

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


def test_the_table_counts_every_parameter_once(loaded):
    _, chosen = learning(loaded, "full")
    total = sum(one.numel() for one in loaded.model.parameters())
    assert sum(count for _, _, count, _ in summarize(chosen)) == total
