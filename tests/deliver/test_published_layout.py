"""A base in the published layout comes out in the published layout, to the last name and token."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from golden_data import GOLDEN, read_json
from published import TOKENIZER, make_config
from safetensors.torch import load_file, save_file
from tiny import pages
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from foveal.config import DataSettings, EvaluateSettings, Recipe, save_recipe
from foveal.deliver.export import export_run
from foveal.deliver.model_folder import name_own_code
from foveal.deliver.tensors import find_tensors
from foveal.models.phi3_vision import Phi3VisionForConditionalGeneration
from foveal.train.checkpoint import STATE, WEIGHTS, Progress

LOADERS = json.loads((Path(__file__).parent / "serving_loaders.json").read_text())
LEARNT = ("model.layers.31.mlp.down_proj.weight", "model.vision_embed_tokens.glb_GN")
CODE = "configuration_phi3_v.py"


def write_json(path: Path, tree: dict) -> None:
    path.write_text(json.dumps(tree, indent=2))


def make_base(folder: Path) -> None:
    """The published folder, file by file, around a model with all its layers and little width."""
    torch.manual_seed(0)
    small = make_config(num_hidden_layers=32)
    small.vision_config.num_hidden_layers = 24
    Phi3VisionForConditionalGeneration(small).save_pretrained(folder)
    config = read_json("phi3v-facts/config.phi35.json")
    sizes = json.loads((folder / "config.json").read_text())
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        config[name] = sizes[name]
    config |= {name: sizes[name] for name in ("rope_scaling", "vision_config", "img_processor")}
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000},
    )
    processor = read_json("phi3v-facts/preprocessor_config.phi35.json")
    write_json(
        folder / "preprocessor_config.json", processor | {"crop_size": 28, "num_img_tokens": 4}
    )
    for path in TOKENIZER.iterdir():
        shutil.copy(path, folder)
    (folder / CODE).write_text("# the published code\n")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The base of a run, and the folder that the run was exported to."""
    place = tmp_path_factory.mktemp("published")
    base, run = place / "base", place / "run"
    make_base(base)
    data = pages(place, 3, 3)
    checkpoint = run / "checkpoints" / "step-3"
    checkpoint.mkdir(parents=True)
    before = load_file(base / "model.safetensors")
    save_file({name: before[name] + 0.25 for name in LEARNT}, checkpoint / WEIGHTS)
    progress = Progress(3, {}, "fingerprint", 1)
    (checkpoint / STATE).write_text(json.dumps(asdict(progress)))
    recipe = Recipe(
        model=str(base),
        run=run,
        data=DataSettings(train=data, validation=data, num_crops=3),
        evaluate=EvaluateSettings(max_new_tokens=3),
    )
    save_recipe(recipe, run / "recipe.yaml")
    return base, export_run(run, place / "out", max_shard_bytes=2_000_000, proof=False).folder


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.slow
def test_a_folder_in_the_published_layout_is_proven(written, tmp_path):
    base, _ = written
    done = export_run(base.parent / "run", tmp_path / "out", max_shard_bytes=2_000_000)
    assert done.proof is not None
    assert done.proof.problems() == []


@pytest.mark.slow
def test_the_weights_have_the_592_published_names_in_bf16(written):
    _, out = written
    lines = (GOLDEN / "phi3v-facts" / "checkpoint_keys.txt").read_text().splitlines()
    published = {line.split("\t")[0] for line in lines}
    found = find_tensors(out)
    assert len(found) == 592
    assert found.keys() == published
    shards = [load_file(shard) for shard in out.glob("model-*.safetensors")]
    assert {one.dtype for shard in shards for one in shard.values()} == {torch.bfloat16}
    assert sum(map(len, shards)) == 592


def test_what_was_learnt_is_written_and_the_rest_is_the_base(written):
    base, out = written
    before = load_file(base / "model.safetensors")
    for shard in out.glob("model-*.safetensors"):
        for name, tensor in load_file(shard).items():
            expected = before[name] + (0.25 if name in LEARNT else 0)
            assert tensor.equal(expected.bfloat16()), name


def test_vllm_and_sglang_find_every_weight_that_they_build_and_no_other(written):
    _, out = written
    expected = {
        pattern.format(d=decoder, t=tower)
        for pattern in LOADERS["parameters"]
        for decoder in range(32)
        for tower in range(23)
    }
    found = set()
    for name in find_tensors(out):
        old, new = next(pair for pair in LOADERS["prefixes"] if name.startswith(pair[0]))
        renamed = new + name.removeprefix(old)
        if not renamed.startswith(tuple(LOADERS["passed_over"])):
            found.add(renamed)
    assert found == expected


def test_the_config_is_as_published(written):
    base, out = written
    assert read(out, "config.json") == read(base, "config.json")
    assert read(out, "config.json")["torch_dtype"] == "bfloat16"
    assert read(out, "config.json")["architectures"] == ["Phi3VForCausalLM"]


def test_the_tokenizer_comes_byte_for_byte(written):
    _, out = written
    for path in TOKENIZER.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_answers_end_at_the_tokens_that_the_model_emits(written):
    base, out = written
    stated = read(out, "generation_config.json")
    assert stated["eos_token_id"] == [32000, 32007]
    assert stated["bos_token_id"] == 1
    assert stated["pad_token_id"] == 32000
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert sorted(model.generation_config.eos_token_id) == [32000, 32007]
    assert read(base, "generation_config.json")["eos_token_id"] == 2  # as published


def test_pictures_are_cut_as_in_training(written):
    base, out = written
    before, after = (read(folder, "preprocessor_config.json") for folder in (base, out))
    assert after == before | {"num_crops": 3}
    assert AutoProcessor.from_pretrained(out).num_crops == 3


def test_code_beside_the_base_comes_along_and_ours_needs_none_of_it(written):
    base, out = written
    assert (out / CODE).read_bytes() == (base / CODE).read_bytes()
    assert type(AutoConfig.from_pretrained(out)).__module__.startswith("foveal.")


def test_code_that_stays_on_the_hub_is_named_with_its_repository(tmp_path):
    tree = {"auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"}}
    name_own_code(tree, tmp_path, "microsoft/Phi-3.5-vision-instruct")
    place = "microsoft/Phi-3.5-vision-instruct--configuration_phi3_v.Phi3VConfig"
    assert tree == {"auto_map": {"AutoConfig": place}}
    name_own_code(tree, tmp_path, "me/mine")  # named before: it stays
    assert tree == {"auto_map": {"AutoConfig": place}}


def test_a_base_that_is_a_folder_is_no_repository_however_its_name_is_written(tmp_path):
    tree = {"auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"}}
    name_own_code(tree, tmp_path, f"{tmp_path}/")
    assert tree == {"auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"}}


def test_the_card_states_the_licence_of_the_base(written):
    _, out = written
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "The base model's own: mit." in card
