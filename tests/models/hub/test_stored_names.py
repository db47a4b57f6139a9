"""Names in a hub's files are read as transformers reads them, or refused."""

import pytest
import torch
from tiny_models import FAMILIES
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, models

from foveal.errors import ModelError
from foveal.models.hub.stored_names import StoredNames


def names_of(model_class, config):
    with torch.device("meta"):
        return StoredNames("m", model_class(config))


def test_tied_weights_have_one_name_of_their_own():
    names = names_of(models.gemma3.Gemma3ForConditionalGeneration, FAMILIES["gemma3"]()[0])
    shared = "model.language_model.embed_tokens.weight"
    assert names.own("language_model.lm_head.weight") == shared
    assert names.own("lm_head.weight") == shared
    assert names.own("language_model.model.embed_tokens.weight") == shared


def test_a_name_that_is_no_weight_of_the_model_stays_as_it_is():
    names = names_of(models.gemma3.Gemma3ForConditionalGeneration, FAMILIES["gemma3"]()[0])
    assert names.own("mtp.layers.0.weight") == "mtp.layers.0.weight"


def test_weights_that_transformers_puts_together_are_refused_by_name():
    text = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_experts": 2,
        "vocab_size": 64,
        "moe_intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config = Qwen3VLMoeConfig(text_config=text, vision_config={"depth": 1, "hidden_size": 32})
    names = names_of(Qwen3VLMoeForConditionalGeneration, config)
    stored = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(ModelError, match=r"model m: transformers puts .*gate_up_proj together"):
        names.own(stored)
