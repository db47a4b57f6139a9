"""Types whose images torchvision reads, held as all others; run by test_torchvision.py."""

import importlib.util
from pathlib import Path

import pytest
import tiny_models_torchvision  # noqa: F401  # enters its families
import torchvision_alone  # noqa: F401  # first of all that looks for torchvision
from tiny_models import write_tiny
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import (
    Phi4MultimodalRotaryEmbedding,
)

from foveal.models.known import ALONE, CACHED, NEEDS_TORCHVISION, SHARED

_spec = importlib.util.spec_from_file_location(
    "families_held", Path(__file__).with_name("test_families.py")
)
held = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(held)
data = held.data
pytestmark = held.pytestmark
ROUTES = (
    dict.fromkeys(SHARED, "rows") | dict.fromkeys(CACHED, "cache") | dict.fromkeys(ALONE, "plain")
)


@pytest.fixture(scope="module", params=sorted(NEEDS_TORCHVISION))
def one(request, data, tmp_path_factory):
    return held.Loaded(write_tiny(request.param, tmp_path_factory.mktemp(request.param)), data)


def its_own_rotations(model):
    """Give a model back what it had before it was loaded here."""
    if hasattr(model.model, "rotary_emb"):
        model.model.rotary_emb = Phi4MultimodalRotaryEmbedding(model.config)


def test_loss_and_gradients_are_those_of_transformers(one):
    kind = one.model.config.model_type
    assert one.loaded.family.route == ROUTES[kind]
    assert one.loaded.note is None
    loss, gradients = one.learn(one.rows())
    border = one.processor.long_context_tokens
    if kind == "phi4_multimodal":  # some examples of the one row are long, others not
        tokens = one.dataset.sizes.tokens
        assert tokens.min() < border < tokens.max()
        its_own_rotations(one.model)
    one.model.set_attn_implementation("eager")
    truth = one.learn_in_transformers()
    assert loss == pytest.approx(truth[0], rel=1e-6)
    assert held.distance(gradients, truth[1]) < 2e-5  # some layers count in float32 all the same
