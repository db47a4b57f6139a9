"""A run of another family than Phi: whatever learns, sharing and stopping change nothing."""

import pytest
import torch
from launched import make_place

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

FAMILIES = [
    "qwen3_vl",
    "qwen3_5",
    pytest.param("gemma3", marks=pytest.mark.slow),
    pytest.param("smolvlm", marks=pytest.mark.slow),
]
STRATEGIES = ["full", "frozen_vision", "lora", "qlora"]
FEW = {
    "lora__rank": 4,
    "train__max_steps": 4,
    "train__save_every_steps": 2,
    "train__tokens_per_pass": 1000,
    "train__learning_rate": 1e-4,
    "data__num_crops": 16,
}


@pytest.fixture(scope="module", params=FAMILIES)
def place(request, tmp_path_factory):
    return make_place(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_shares_pictures_or_was_stopped_is_the_run_that_does_neither(place, strategy):
    whole = place.recipe(f"whole-{strategy}", strategy=strategy, **FEW)
    apart = place.recipe(f"apart-{strategy}", strategy=strategy, data__share_images=False, **FEW)
    halves = place.recipe(f"halves-{strategy}", strategy=strategy, **FEW)
    for recipe in (whole, apart):
        place.run_alone(recipe)
    place.run_alone(halves, stop_at=2)
    place.run_alone(halves)
    losses, others, again = (
        [line["loss"] for line in place.metrics(f"{run}-{strategy}")]
        for run in ("whole", "apart", "halves")
    )
    assert losses[-1] != losses[0]
    assert others == pytest.approx(losses, rel=1e-6)
    assert again == losses
    weights, resumed = place.weights(f"whole-{strategy}"), place.weights(f"halves-{strategy}")
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())
