"""Weights in a hub's files are read as transformers reads them, and written back so."""

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from daily import daily
from safetensors.torch import load_file
from tiny_models import FAMILIES, write_tiny
from transformers import AutoConfig, AutoModelForImageTextToText, models

from foveal.models.hub.stored_names import StoredNames


def names_of(model_class, config):
    with torch.device("meta"):
        return StoredNames(model_class(config))


def test_tied_weights_have_one_name_of_their_own():
    names = names_of(models.gemma3.Gemma3ForConditionalGeneration, FAMILIES["gemma3"]()[0])
    shared = "model.language_model.embed_tokens.weight"
    assert names.own("language_model.lm_head.weight") == shared
    assert names.own("lm_head.weight") == shared
    assert names.own("language_model.model.embed_tokens.weight") == shared


def test_a_name_that_is_no_weight_of_the_model_stays_as_it_is():
    names = names_of(models.gemma3.Gemma3ForConditionalGeneration, FAMILIES["gemma3"]()[0])
    assert names.own("mtp.layers.0.weight") == "mtp.layers.0.weight"


@pytest.mark.parametrize(
    "family",
    daily("qwen3_vl_moe", beside=["qianfan_ocr", "ernie4_5_vl_moe", "glm4v_moe", "qwen3_5_moe"]),
)
def test_weights_that_are_regrouped_are_those_transformers_loads_and_go_back_as_they_were(
    tmp_path, family
):
    write_tiny(family, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    names = names_of(type_of(tmp_path), AutoConfig.from_pretrained(tmp_path))
    groups = names.regrouped({name: tuple(one.shape) for name, one in stored.items()})
    assert groups
    met = [name for group in groups for name in group.stored]
    assert sorted(met) == sorted(name for name in stored if names.own(name) is None)
    for group in groups:
        own = group.own(stored)
        assert group.shapes == {name: tuple(one.shape) for name, one in own.items()}
        assert all(one.equal(loaded[name]) for name, one in own.items())
        back = group.written(own)
        assert set(back) == set(group.stored)
        assert all(back[name].equal(stored[name]) for name in group.stored)


def type_of(folder):
    return AutoModelForImageTextToText._model_mapping[type(AutoConfig.from_pretrained(folder))]
