"""The table of model types says what is so: each is held to transformers' own code.

Those that are read by a cache are held by `test_cached_rows.py`.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import tiny_models_more  # noqa: F401  # enters its families
from tiny_models import FAMILIES as WRITTEN
from tiny_models import write_tiny

from foveal.errors import ModelError
from foveal.models import FAMILIES as HELD
from foveal.models.known import ALONE, CACHED, NEEDS_TORCHVISION, ONE_IMAGE, REFUSED, SHARED
from foveal.models.loading import load

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
    assert set(HELD) <= set(ROUTES)
    assert set(WRITTEN) == {*ROUTES, *REFUSED} - {"phi3_v", *NEEDS_TORCHVISION}
    assert {*NEEDS_TORCHVISION, *ONE_IMAGE} <= set(ROUTES)


@pytest.fixture(scope="module")
def one_image(data):
    """The same data without what shows several images."""
    kept = [
        line
        for line in data.read_text().splitlines()
        if sum(len(turn["images"]) for turn in json.loads(line)["conversations"]) < 2
    ]
    file = data.with_name("one_image.jsonl")
    file.write_text("\n".join(kept) + "\n")
    return file


@pytest.mark.parametrize("name", sorted({*SHARED} - {*HELD, *NEEDS_TORCHVISION} | {*ALONE}))
def test_loss_and_gradients_are_those_of_transformers(name, data, one_image, tmp_path):
    shown = one_image if name in (*ONE_IMAGE, *ALONE) else data
    one = held.Loaded(write_tiny(name, tmp_path), shown)
    assert one.loaded.family.route == ROUTES[name]
    rows = one.alone() if ROUTES[name] == "plain" else one.rows()
    loss, gradients = one.learn(rows)
    one.model.set_attn_implementation("eager")
    truth = one.learn_in_transformers()
    assert loss == pytest.approx(truth[0], rel=1e-6)
    assert held.distance(gradients, truth[1]) < 5e-5  # some layers count in float32 all the same


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_read_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(ModelError) as refused:
        load(str(write_tiny(name, tmp_path)), None, "blocks")
    assert "\n" not in str(refused.value)
