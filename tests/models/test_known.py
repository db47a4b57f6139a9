"""The table of model types says what is so: each is held to transformers' own code."""

import importlib.util
from pathlib import Path

import pytest
import tiny_models_more  # noqa: F401  # enters its families
from tiny_models import FAMILIES as WRITTEN
from tiny_models import write_tiny

from foveal.errors import ModelError
from foveal.models import FAMILIES as HELD
from foveal.models.family import load
from foveal.models.known import ALONE, CACHED, REFUSED, SHARED

_spec = importlib.util.spec_from_file_location(
    "families_held", Path(__file__).with_name("test_families.py")
)
held = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(held)
data = held.data
ROUTES = (
    dict.fromkeys(SHARED, "rows") | dict.fromkeys(CACHED, "cache") | dict.fromkeys(ALONE, "plain")
)
pytestmark = [
    *held.pytestmark,
    pytest.mark.slow,
]


def test_the_table_holds_every_family_that_is_held():
    assert set(HELD) <= set(SHARED)
    assert set(WRITTEN) - {"llava_onevision"} == {*ROUTES, *REFUSED} - {"phi3_v"}


@pytest.mark.parametrize("name", sorted({*ROUTES} - {*HELD}))
def test_loss_and_gradients_are_those_of_transformers(name, data, tmp_path):
    one = held.Loaded(write_tiny(name, tmp_path), data)
    assert one.loaded.family.route == ROUTES[name]
    rows = one.alone() if ROUTES[name] == "plain" else one.rows()
    loss, gradients = one.learn(rows)
    one.model.set_attn_implementation("eager")
    truth = one.learn_in_transformers()
    # Recurrent layers count in float32 whatever they are given.
    loss_bound, bound = (1e-5, 1e-3) if ROUTES[name] == "cache" else (1e-6, 5e-5)
    assert loss == pytest.approx(truth[0], rel=loss_bound)
    assert held.distance(gradients, truth[1]) < bound


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_read_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(ModelError) as refused:
        load(str(write_tiny(name, tmp_path)), None, "blocks")
    assert "\n" not in str(refused.value)
