"""What the house may ask of any model, asked of ours."""

import json
from collections import Counter
from importlib.util import find_spec

import pytest
import tiny_models
import torch
from golden_data import read_json

from foveal.config import Recipe
from foveal.data.forward_inputs import ForwardInputs, GroupSpan
from foveal.errors import ModelError
from foveal.inputs import token_counter
from foveal.models.family import PARTS
from foveal.models.forward import hidden_states
from foveal.models.loading import find_family, load, read_model_type
from foveal.models.phi3_vision import Phi3VisionConfig, Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.phi3_vision.tiny import TinySizes, write_tiny
from foveal.models.shared_rows import attention_of
from foveal.plan.question import read_model

WIDE = '{"model_type": "phi3_v", "hidden_size": "wide"}'

SIZES = TinySizes(
    crop_size=28, tower_width=8, tower_layers=2, tower_heads=2, width=16, layers=1, heads=2
)


@pytest.fixture(scope="module")
def full_model():
    """The published model, without its numbers."""
    with torch.device("meta"):
        config = Phi3VisionConfig(**read_json("phi3v-facts/config.phi35.json"))
        return Phi3VisionForConditionalGeneration(config)


@pytest.fixture
def folder(tmp_path):
    write_tiny(tmp_path / "model", seed=0, sizes=SIZES)
    return tmp_path / "model"


def test_every_weight_belongs_to_a_part_and_the_parts_have_the_published_sizes(full_model):
    sizes = Counter()
    for name, parameter in full_model.named_parameters():
        sizes[FAMILY.part_name(name).partition(".")[0]] += parameter.numel()
    # Tower; projection and separators; decoder, token embedding and head.
    assert sizes == {"vision": 303_507_456, "projector": 22_034_432, "language": 3_821_079_552}
    assert set(sizes) == set(PARTS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "language.embed_tokens.weight"),
        ("model.layers.0.mlp.down_proj.weight", "language.layers.0.mlp.down_proj.weight"),
        ("model.norm.weight", "language.norm.weight"),
        ("lm_head.weight", "language.lm_head.weight"),
        ("model.vision_embed_tokens.glb_GN", "projector.glb_GN"),
        ("model.vision_embed_tokens.img_projection.0.bias", "projector.img_projection.0.bias"),
        (
            "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.3.mlp.fc1.bias",
            "vision.vision_model.encoder.layers.3.mlp.fc1.bias",
        ),
    ],
)
def test_a_weight_is_called_by_its_part_and_name(name, expected):
    assert FAMILY.part_name(name) == expected


def test_the_weights_that_no_forward_pass_reads_are_known(full_model):
    unused = {
        name: parameter.numel()
        for name, parameter in full_model.named_parameters()
        if FAMILY.is_unused(full_model, name)
    }
    assert sum(unused.values()) == 12_598_272  # layer 23 and post_layernorm
    assert all("layers.23." in name or "post_layernorm" in name for name in unused)


def test_a_tiny_folder_loads_with_the_asked_for_crops_and_attention(folder):
    loaded = load(str(folder), image_budget=3, attention="blocks")
    assert loaded.family is FAMILY is find_family(str(folder))
    assert loaded.processor.num_crops == 3
    assert loaded.model.config._attn_implementation == "foveal_blocks"
    assert attention_of(loaded.model.config) == "blocks"
    assert loaded.model.config.vision_config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert load(str(folder), image_budget=None).processor.num_crops == 4
    half = load(str(folder), None, dtype=torch.bfloat16).model
    assert half.lm_head.weight.dtype == torch.bfloat16
    assert FAMILY.head(half) is half.lm_head
    assert FAMILY.long_context_tokens(half.config) == 4096
    assert loaded.processor.long_context_tokens == 4096


def test_the_hidden_states_of_a_row_are_those_behind_the_logits(folder):
    model = load(str(folder), None, attention="sdpa").model.eval()
    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        inputs = ForwardInputs(ids, torch.tensor([[[0, 1, 2, 3]], [[0] * 4]]), {}, (), ())
        hidden = hidden_states(model, FAMILY, inputs, groups=(GroupSpan(0, (), 4),))
        assert torch.equal(FAMILY.head(model)(hidden), model(input_ids=ids).logits[0])


def test_a_tiny_folder_follows_its_seed_alone_and_leaves_other_choices_alone(folder, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_tiny(tmp_path / "again", seed=0, sizes=SIZES)
    assert torch.equal(torch.rand(3), expected)
    write_tiny(tmp_path / "other", seed=1, sizes=SIZES)
    stored = [
        (path / "model.safetensors").read_bytes()
        for path in (folder, tmp_path / "again", tmp_path / "other")
    ]
    assert stored[0] == stored[1] != stored[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model", "other"]


def refusal(name, **settings):
    with pytest.raises(ModelError) as caught:
        load(str(name), None, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(name) in message
    return message


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    assert "config.json" in refusal(tmp_path)
    assert "hub name" in refusal(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{broken")
    assert "config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "config.json is no mapping" in refusal(tmp_path)


def test_a_model_of_another_kind_is_refused_with_its_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "model_type 'bert' is no image-text model of transformers" in refusal(tmp_path)
    assert read_model_type(str(tmp_path)) == "bert"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("model.safetensors", b"cut"),
        ("tokenizer.json", None),
        ("tokenizer.json", b"{"),
        ("config.json", WIDE.encode()),
    ],
)
def test_a_folder_with_a_broken_or_missing_file_is_refused_in_one_line(folder, file, content):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    refusal(folder)


def test_a_file_that_a_known_type_cannot_do_without_is_named(tmp_path):
    tiny_models.write_tiny("internvl", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert "it has no tokenizer_config.json, and cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("content", [{"tokenizer.json": "{"}, {"config.json": WIDE}])
@pytest.mark.parametrize(
    "ask", [token_counter, lambda recipe, _: read_model(recipe)], ids=["check", "plan"]
)
def test_who_asks_for_no_weights_is_refused_in_one_line_too(folder, tmp_path, ask, content):
    ((file, text),) = content.items()
    (folder / file).write_text(text)
    with pytest.raises(ModelError, match=str(folder)) as caught:
        ask(Recipe(model=str(folder), run=tmp_path / "run"), tmp_path / "train.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="it is installed here")
def test_an_attention_that_is_not_installed_is_refused_in_one_line(folder):
    assert "needs the package flash_attn" in refusal(folder, attention="flash_attention_2")


def test_weights_cut_short_are_refused_in_one_line(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    said = refusal(folder)
    assert said.startswith(f"model {folder}: broken weights (")
    assert said.endswith("; fetch it again")


def test_a_second_name_in_phis_files_is_read_as_the_models_own():
    from foveal.models.phi3_vision.seam import FAMILY

    assert FAMILY.own_name("model.vision_embed_tokens.wte.weight") == "model.embed_tokens.weight"
    assert FAMILY.own_name("model.norm.weight") == "model.norm.weight"
