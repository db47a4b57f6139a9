"""What a row costs follows from the sizes of the model that reads it."""

from types import SimpleNamespace

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from tiny_models import write_tiny
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from foveal.adapt.quantize import bare_model
from foveal.models.hub.hub_family import HubFamily
from foveal.models.hub.row_costs import LayerProducts
from foveal.models.loading import find_family
from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.seam import COSTS
from foveal.models.phi3_vision.seam import FAMILY as PHI3_VISION

QWEN3_VL_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def processor_of(pixels, crops):
    """Make what is asked of a processor: so many numbers, counted as so many crops."""
    shape = SimpleNamespace(crops=crops, features=1)
    return SimpleNamespace(
        shape=lambda width, height: shape,
        pixels=lambda image: {"pixel_values": torch.empty(pixels, device="meta")},
    )


def test_a_patch_of_qwen3_vl_costs_a_ninth_of_a_token():
    config = Qwen3VLConfig(text_config=QWEN3_VL_4B)
    family = HubFamily("Qwen3-VL-4B", config, Qwen3VLForConditionalGeneration)
    # Queries and what follows the attention, keys and values; the three of the MLP.
    token = 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)
    patch = 27 * (4 * 1152 * 1152 + 2 * 1152 * 4304)
    costs = family.row_costs(processor_of((30, 3 * 2 * 16 * 16), 30))
    assert costs.crop == pytest.approx(patch / token)
    assert costs.pair == pytest.approx(2 * 36 * 32 * 128 / token)


def test_the_price_that_plans_of_phi_go_by_is_within_a_tenth_of_what_its_layers_multiply():
    config = Phi3VisionConfig()
    model = bare_model(config)
    blocks = PHI3_VISION.blocks(model)
    tower = blocks[: config.vision_config.num_hidden_layers - 1]  # the last is not run
    products = LayerProducts.count(config, blocks[-config.num_hidden_layers :], tower)
    costs = products.costs(config, processor_of((1, 3, 336, 336), 1))
    assert costs.pair == pytest.approx(COSTS.pair, rel=0.1)
    assert costs.crop == pytest.approx(COSTS.crop, rel=0.1)


def test_a_token_is_multiplied_with_the_experts_that_it_is_given(tmp_path):
    family = find_family(str(write_tiny("qwen3_vl_moe", tmp_path / "model")))
    text = family.config.get_text_config()
    assert (text.num_experts_per_tok, text.num_experts) == (2, 4)
    # Four heads of 16, two of them of keys and values; three matrices an expert.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * text.moe_intermediate_size * 2
    assert family._products.token == text.num_hidden_layers * layer
