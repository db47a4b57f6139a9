"""Published files go in and out unchanged, and nothing is passed over in silence."""

import json
import shutil
from collections import Counter

import pytest
import torch
from golden_data import GOLDEN, read_json
from published import make_config
from safetensors.torch import load_file, save_file

from foveal.errors import ModelError
from foveal.models.phi3_vision import Phi3VisionConfig, Phi3VisionForConditionalGeneration

SECOND_NAME = "model.vision_embed_tokens.wte.weight"
EMBEDDING = "model.embed_tokens.weight"
PUBLISHED = ["phi3v-facts/config.phi35.json", "phi3v-facts/config.phi3.json"]


def published_shapes():
    lines = (GOLDEN / "phi3v-facts" / "checkpoint_keys.txt").read_text().splitlines()
    fields = [line.split("\t") for line in lines]
    return {name: tuple(json.loads(shape)) for name, shape, *_ in fields}


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return Phi3VisionForConditionalGeneration(make_config()).eval()


def load(folder, **kwargs):
    return Phi3VisionForConditionalGeneration.from_pretrained(folder, dtype="auto", **kwargs)


@pytest.fixture
def folder(tmp_path):
    """A folder of a tiny model."""
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# -- the published checkpoint ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_full_model_has_the_published_names_shapes_and_count(name):
    with torch.device("meta"):
        model = Phi3VisionForConditionalGeneration(Phi3VisionConfig(**read_json(name)))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert len(shapes) == 592
    assert shapes == published_shapes()
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_146_621_440


def test_files_with_the_published_layout_give_the_models_weights_to_the_bit():
    stored = load_file(GOLDEN / "tiny_b" / "model.safetensors")
    vision = read_json("tiny_b/vision_config.json")
    weights = load(GOLDEN / "tiny_b", vision_config=vision).state_dict()
    assert weights.keys() == stored.keys()
    for name, tensor in stored.items():
        assert weights[name].dtype == torch.bfloat16
        assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_then_load_gives_the_same_bits_under_the_same_names(tmp_path, dtype):
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    again = load(tmp_path)
    assert stored.keys() == model.state_dict().keys() == again.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor), name
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_model_saved_in_shards_reads_back_the_same(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert len(set(index["weight_map"].values())) > 1
    for name, tensor in load(tmp_path).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_file_with_the_embeddings_second_name_loads_and_is_saved_under_the_published_one(
    folder, tmp_path
):
    change_weights(folder, lambda weights: weights.update({SECOND_NAME: weights.pop(EMBEDDING)}))
    model = load(folder)
    assert torch.equal(model.model.embed_tokens.weight, tiny_model().model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "again")
    names = load_file(tmp_path / "again" / "model.safetensors").keys()
    assert EMBEDDING in names
    assert SECOND_NAME not in names


def test_a_file_with_both_names_of_the_embedding_loads_too(folder):
    change_weights(folder, lambda weights: weights.update({SECOND_NAME: weights[EMBEDDING] + 0}))
    model = load(folder)
    assert torch.equal(model.model.embed_tokens.weight, tiny_model().model.embed_tokens.weight)


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        EMBEDDING,
        "model.vision_embed_tokens.glb_GN",
        "model.layers.1.mlp.down_proj.weight",
        "model.vision_embed_tokens.img_processor.vision_model.post_layernorm.bias",
    ],
)
def test_a_missing_weight_is_named(folder, name):
    change_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=rf"^[^\n]*missing weight {name}$"):
        load(folder)


def test_an_unexpected_weight_is_named(folder):
    extra = {"model.layers.2.mlp.down_proj.weight": torch.zeros(1), "stranger": torch.zeros(2)}
    change_weights(folder, lambda weights: weights.update(extra))
    with pytest.raises(ModelError, match=r"unexpected weight model\.layers\.2\..*weight stranger$"):
        load(folder)


def test_a_weight_of_another_shape_is_named_with_both_shapes(folder):
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(23)}))
    with pytest.raises(
        ModelError, match=r"weight model\.norm\.weight has shape \(23,\) where .* \(24,\)$"
    ):
        load(folder)


def test_of_many_problems_the_first_are_named_and_the_rest_counted(folder):
    change_weights(folder, lambda weights: [weights.pop(name) for name in list(weights)[:8]])
    with pytest.raises(ModelError, match=r"^[^\n]*missing weight [^\n]* \(and 5 more\)$") as caught:
        load(folder)
    assert Counter(str(caught.value).split())["missing"] == 3


def test_loading_tells_what_it_was_asked_to_tell(folder):
    model, info = load(folder, output_loading_info=True)
    assert isinstance(model, Phi3VisionForConditionalGeneration)
    assert not info["missing_keys"]


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLISHED, "tiny_a/config.json", "tiny_b/config.json"])
def test_a_config_is_written_with_the_published_names_and_values(name):
    published = read_json(name)
    config = Phi3VisionConfig(**published)
    written = config.to_dict()
    renamed = {"torch_dtype": "dtype"}  # by transformers 5, which reads both
    left_out = {"auto_map", "transformers_version", "_attn_implementation"}
    for key in published.keys() - left_out:
        assert written[renamed.get(key, key)] == published[key], key
    assert "rope_parameters" not in written
    assert Phi3VisionConfig(**written).to_dict() == written


def test_a_saved_config_reads_back_the_same(tmp_path):
    published = Phi3VisionConfig(**read_json(PUBLISHED[0]))
    published.save_pretrained(tmp_path)
    again = Phi3VisionConfig.from_pretrained(tmp_path)
    where = {"_name_or_path": "anywhere"}
    assert again.to_dict() | where == published.to_dict() | where
    assert again.rope_parameters == published.rope_parameters
    assert again.vision_config.to_dict() == published.vision_config.to_dict()


def test_a_config_names_the_tower_only_where_it_is_not_the_published_one():
    assert "vision_config" not in Phi3VisionConfig(**read_json(PUBLISHED[0])).to_dict()
    smaller = Phi3VisionConfig(vision_config={"hidden_size": 64, "num_attention_heads": 4})
    written = smaller.to_dict()
    assert written["vision_config"]["hidden_size"] == 64
    assert Phi3VisionConfig(**written).vision_config.patch_size == 14


def test_the_published_config_asks_for_no_attention_of_its_own(folder):
    change_json(folder / "config.json", _attn_implementation="flash_attention_2")
    assert load(folder).config._attn_implementation == "sdpa"
    assert load(folder, attn_implementation="eager").config._attn_implementation == "eager"


def test_a_published_config_file_is_read_unchanged(tmp_path):
    shutil.copy(GOLDEN / PUBLISHED[0], tmp_path / "config.json")
    config = Phi3VisionConfig.from_pretrained(tmp_path)
    assert config.image_token_id == 32044
    assert (config.crop_size, config.crop_tokens_side) == (336, 12)
    tower = config.vision_config
    assert (tower.hidden_size, tower.num_hidden_layers, tower.hidden_act) == (
        1024,
        24,
        "quick_gelu",
    )
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.sliding_window == 262144


# -- where an answer ends --------------------------------------------------------------------------


def always_answer(folder, token):
    """Make the model say one token, whatever it is asked."""

    def change(weights):
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "mlp.down_proj.weight", "lm_head.weight")):
                weight.zero_()
        weights[EMBEDDING].fill_(1.0)
        weights["lm_head.weight"][token] = 1.0

    change_weights(folder, change)


@pytest.mark.parametrize("token", [32000, 32007])
@pytest.mark.parametrize("sampled", [False, True])
def test_an_answer_stops_at_either_end_token_where_the_files_name_one_that_never_comes(
    folder, token, sampled
):
    for name in ("config.json", "generation_config.json"):
        change_json(folder / name, eos_token_id=2)
    always_answer(folder, token)
    model = load(folder)
    assert model.generation_config.eos_token_id == [32000, 32007]
    prompt = torch.tensor([[1, 32010, 5], [1, 32010, 6]])
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=sampled, top_k=1
    )
    assert made[:, 3:].tolist() == [[token], [token]]


def test_an_answer_does_not_stop_at_a_token_that_ends_nothing(folder):
    always_answer(folder, 2)
    model = load(folder)
    prompt = torch.tensor([[1, 32010, 5]])
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5)
    assert made[0, 3:].tolist() == [2] * 5


def test_end_tokens_that_the_files_choose_are_kept(folder):
    change_json(folder / "generation_config.json", eos_token_id=[32007])
    assert load(folder).generation_config.eos_token_id == [32007]


def test_a_folder_without_a_generation_config_ends_answers_as_published(folder):
    (folder / "generation_config.json").unlink()
    change_json(folder / "config.json", eos_token_id=2)
    assert load(folder).generation_config.eos_token_id == [32000, 32007]
