"""A run of another family than Phi: whatever learns, sharing and stopping change nothing."""

import json
import re

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from daily import daily
from launched import make_place
from safetensors.torch import load_file
from tiny_models import write_tiny

from foveal.errors import DataError
from foveal.models.loading import find_family

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

FAMILIES = daily("qwen3_vl", beside=["qwen3_5", "gemma3", "smolvlm"])
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


@pytest.mark.parametrize("strategy", daily("lora", beside=["full", "frozen_vision", "qlora"]))
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
    # As far as float32 is promised to agree: sums in another order, and steps that grow from them.
    assert others == pytest.approx(losses, rel=1e-5)
    assert again == losses
    weights, resumed = place.weights(f"whole-{strategy}"), place.weights(f"halves-{strategy}")
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())


REGROUPED = daily(
    "qwen3_vl_moe", beside=["qianfan_ocr", "ernie4_5_vl_moe", "glm4v_moe", "qwen3_5_moe"]
)
"""Of whose weights transformers makes others than their files hold."""

NEVER_LEARNT = dict.fromkeys(
    ["qwen3_vl_moe", "qianfan_ocr", "glm4v_moe", "qwen3_5_moe"], r"\.e_score_correction_bias$"
) | {
    # The experts of images are the last four; nobody reads what the last layer makes of images.
    "ernie4_5_vl_moe": r"\.e_score_correction_bias$|layers\.2\.mlp\.(experts\.[4-7]|gate\.weight_1)"
}
"""What balances experts has no gradient."""


@pytest.mark.parametrize("family", REGROUPED)
def test_weights_that_are_regrouped_learn_whole_and_go_back_under_the_names_of_the_files(
    tmp_path, family
):
    place = make_place(tmp_path, family)
    place.run_alone(place.recipe("run", **FEW | {"train__max_steps": 2}))
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert {name: one.shape for name, one in after.items()} == {
        name: one.shape for name, one in before.items()
    }
    still = [name for name in before if before[name].equal(after[name])]
    assert [name for name in still if not re.search(NEVER_LEARNT[family], name)] == []


def test_no_adapter_stands_beside_a_layer_whose_weight_another_reads(tmp_path):
    place = make_place(tmp_path, "aria")  # its projector is torch's own attention
    place.run_alone(place.recipe("run", strategy="lora", **FEW | {"train__max_steps": 1}))
    adapters = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert any("cross_attn.q_proj" in name for name in adapters)
    assert not any("multihead_attn" in name for name in adapters)


def test_what_draws_images_stays_as_it_is_where_they_are_read(tmp_path):
    place = make_place(tmp_path, "janus")
    place.run_alone(place.recipe("run", **FEW | {"train__max_steps": 2}))
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "final" / "model.safetensors")
    moved = {name.split(".")[1] for name in before if not before[name].equal(after[name])}
    assert moved == {"vision_model", "aligner", "language_model"}


def test_a_run_speaks_of_images_in_the_words_of_its_family(tmp_path):
    place = make_place(tmp_path, "qwen3_vl")
    config = tmp_path / "model" / "config.json"
    tree = json.loads(config.read_text())
    tree["text_config"]["max_position_embeddings"] = 20
    config.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"shorten it, or lower data.image_settings$"):
        place.run_alone(place.recipe("run", **FEW))


def test_a_run_that_goes_on_with_another_reader_of_images_says_so(tmp_path):
    place = make_place(tmp_path, "qwen3_vl")
    recipe = place.recipe("run", **FEW)
    place.run_alone(recipe, stop_at=2)
    machine = tmp_path / "run" / "machine.json"
    tree = json.loads(machine.read_text())
    assert tree["image_backend"] == "pil"
    assert "images read by" not in place.said["run"]
    machine.write_text(json.dumps(tree | {"image_backend": "torchvision"}))
    place.run_alone(recipe)
    assert "The run began with images read by torchvision, now it is pil" in place.said["run"]


def test_a_folder_that_is_written_over_is_looked_at_anew(tmp_path):
    folder = write_tiny("qwen3_vl", tmp_path)
    assert find_family(str(folder)) is find_family(str(folder))
    before = find_family(str(folder)).config.text_config.num_hidden_layers
    config = folder / "config.json"
    tree = json.loads(config.read_text())
    tree["text_config"]["num_hidden_layers"] = before - 1
    config.write_text(json.dumps(tree))
    assert find_family(str(folder)).config.text_config.num_hidden_layers == before - 1
