"""A tuned model in fewer bits, in the layout that vLLM reads: what is written is what is proven."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from daily import daily
from safetensors.torch import load_file, save_file
from small_runs import recipe, run
from tiny import make_image, pages
from tiny_models import write_tiny

import foveal
from foveal.deliver import export
from foveal.deliver.export import export_run
from foveal.deliver.export_source import find_source
from foveal.deliver.model_folder import model_tensors
from foveal.deliver.weight_only import WeightOnly, plan_weight_only
from foveal.errors import ConfigError, ModelError
from foveal.models.loading import find_family
from foveal.run import TrainingRun

pytest.importorskip("compressed_tensors")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LAYER = "model.layers.0.mlp.down_proj."


def weights(folder):
    return load_file(folder / "model.safetensors")


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("kind", daily("int4", beside=["int8", "fp8"]))
def test_a_run_in_fewer_bits_is_that_run_rounded_and_answers_by_itself(lora_run, tmp_path, kind):
    done = export_run(lora_run, tmp_path / "out", quantize=kind)
    assert done.proof is not None
    assert done.proof.problems() == []
    assert done.proof.difference == 0
    assert done.proof.rounding_difference > 0
    assert done.folder == tmp_path / "out"
    assert json.loads((done.folder / "proof.json").read_text())["weights"] == kind
    assert f"weights in bf16, but {kind}, a scale" in (done.folder / "README.md").read_text()
    make_image(tmp_path / "page.png", 3)
    assert isinstance(foveal.load(str(done.folder)).answer(tmp_path / "page.png", "What?"), str)


def test_bits_unpacked_by_hand_times_their_scales_are_the_weight_to_half_a_step(lora_run, tmp_path):
    done = export_run(lora_run, tmp_path / "out", quantize="int4", dtype="float32", proof=False)
    whole = export_run(lora_run, tmp_path / "whole", merge=True, dtype="float32", proof=False)
    held, weight = weights(done.folder), weights(whole.folder)[f"{LAYER}weight"]
    outputs, inputs = held[f"{LAYER}weight_shape"].tolist()
    words = held[f"{LAYER}weight_packed"].numpy().view("uint32")
    places = [
        [int(words[row, at // 8]) >> 4 * (at % 8) & 15 for at in range(inputs)]
        for row in range(outputs)
    ]  # eight of four bits a word, the lowest first
    steps = torch.tensor(places) - 8
    scale = held[f"{LAYER}weight_scale"].repeat_interleave(32, dim=1)
    apart = (steps * scale - weight).abs() / scale
    assert apart.max() <= 0.5 + 1e-4
    assert steps.min() == -8  # the largest of each group stands at an end


def test_tower_projector_head_and_norms_stay_as_they_were(lora_run, tmp_path):
    held = weights(export_run(lora_run, tmp_path / "out", quantize="int8", proof=False).folder)
    whole = weights(export_run(lora_run, tmp_path / "whole", merge=True, proof=False).folder)
    replaced = {name for name in whole if name not in held}
    assert {re.sub(r"\d+", "*", name) for name in replaced} == {
        f"model.layers.*.{layer}.weight"
        for layer in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }
    assert all(held[name].equal(whole[name]) for name in whole.keys() & held.keys())


def test_small_shards_hold_the_same_tensors(lora_run, tmp_path):
    one = export_run(lora_run, tmp_path / "one", quantize="int4", proof=False).folder
    many = export_run(
        lora_run, tmp_path / "many", quantize="int4", proof=False, max_shard_bytes=20_000
    ).folder
    files = sorted(many.glob("*.safetensors"))
    assert len(files) > 3
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == weights(one).keys()
    assert all(found[name].equal(tensor) for name, tensor in weights(one).items())


@pytest.mark.parametrize("part", daily("weight_packed", beside=["weight_scale"]))
def test_a_folder_whose_bits_were_spoilt_is_not_proven(lora_run, tmp_path, monkeypatch, part):
    right = export.write_model

    def wrong(source, folder, *rest):
        right(source, folder, *rest)
        tensors = weights(folder)
        name = f"{LAYER}{part}"
        tensors[name] = tensors[name].roll(1, 0)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "write_model", wrong)
    done = export_run(lora_run, tmp_path / "out", quantize="int8")
    assert done.failed
    assert done.folder == tmp_path / "out.unverified"


def test_vllms_names_are_held_or_left_whole_as_the_files_are(lora_run):
    plan = plan_weight_only(str(find_source(lora_run).base), find_source(lora_run).family, "int4")
    loaders = json.loads(Path(__file__).with_name("serving_loaders.json").read_text())
    names = [one.removesuffix(".weight") for one in loaders["parameters"] if "proj" in one]

    def is_whole(name):
        return any(re.match(one.removeprefix("re:"), name) for one in plan.whole)

    assert is_whole("language_model.lm_head")
    assert {name for name in names if not is_whole(name)} == {
        f"language_model.model.layers.{{d}}.{layer}"
        for layer in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }


def test_a_folder_is_as_vllms_schemes_for_weights_alone_ask(lora_run, tmp_path):
    asked = json.loads(Path(__file__).with_name("weight_only_loaders.json").read_text())
    for kind, wants in asked["formats"].items():
        folder = export_run(lora_run, tmp_path / kind, quantize=kind, proof=False).folder
        (group,) = settings_of(folder)["config_groups"].values()
        assert settings_of(folder)["quant_method"] == "compressed-tensors"
        assert group["targets"] == ["Linear"]
        assert group.get("input_activations") is None
        assert wants["settings"].items() <= ({"format": group["format"]} | group["weights"]).items()
        tensors = weights(folder)
        held = {name.removeprefix(LAYER): one for name, one in tensors.items() if LAYER in name}
        assert {name: str(one.dtype) for name, one in held.items()} == wants["tensors"]


@pytest.mark.slow
@pytest.mark.parametrize("family", daily("gemma3", beside=["qwen2_5_vl", "llava"]))
def test_other_families_are_held_by_the_names_of_their_own_files(family, tmp_path):
    write_tiny(family, tmp_path / "model")
    pages(tmp_path, 2, 1, "train")
    made = recipe(tmp_path, "run", train__max_steps=1, train__epochs=1, strategy="lora")
    run(made)
    plan = plan_weight_only(str(tmp_path / "model"), find_family(str(tmp_path / "model")), "fp8")
    done = export_run(tmp_path / "run", tmp_path / "out", quantize="fp8")
    assert done.proof is not None
    assert done.proof.problems() == []
    base, held = weights(tmp_path / "model"), weights(done.folder)
    added = {name for name in held if name not in base}
    assert len(added) == len(plan.layers) > 4
    assert all(name.endswith(".weight_scale") for name in added)
    float8 = {name for name, one in held.items() if one.dtype == torch.float8_e4m3fn}
    assert {f"{name}_scale" for name in float8} == added


def test_a_step_is_the_largest_of_its_group_over_half_the_range():
    plan = WeightOnly("int8", {"layer": (1, 4)}, (), None)
    # 127.5 steps reach 255, so a step is 2; 3 lies between 1 and 2 steps, and the even one is taken
    rounded = plan.rounded(torch.tensor([[255.0, 3.0, -2.0, 0.0]]), torch.float32)
    assert rounded.tolist() == [[254.0, 4.0, -2.0, 0.0]]


def test_what_cannot_be_held_so_is_refused_with_its_reason(tmp_path, lora_run, monkeypatch):
    source = find_source(lora_run)
    odd = source.base
    monkeypatch.setattr("foveal.deliver.weight_only.PACKED_INPUTS", 48)
    with pytest.raises(ModelError, match=r"8 layers .* no multiple of 48 inputs.*give.*fp8"):
        plan_weight_only(str(odd), source.family, "int8")
    assert plan_weight_only(str(odd), source.family, "fp8").group_size is None


def test_experts_in_one_tensor_are_refused_by_name(tmp_path):
    write_tiny("qwen3_vl_moe", tmp_path)
    with pytest.raises(ModelError, match=r"experts\.\w+ holds all experts in one tensor"):
        plan_weight_only(str(tmp_path), find_family(str(tmp_path)), "int4")


def test_a_model_in_fewer_bits_is_no_base_to_train_on(lora_run, tmp_path):
    out = export_run(lora_run, tmp_path / "out", quantize="fp8", proof=False).folder
    pages(tmp_path, 2, 1, "train")
    made = recipe(tmp_path, "again").model_copy(update={"model": str(out)})
    from rich.console import Console

    with pytest.raises(ConfigError, match="in fewer bits; give the whole model"):
        TrainingRun(made, Console(quiet=True))


def test_a_weight_that_makes_no_number_is_named_before_it_is_held_in_fewer_bits():
    source = SimpleNamespace(written_names={"head.weight": "head.weight"}, regrouped=[])
    bits = WeightOnly("int8", {"head": (1, 32)}, (), None)
    spoilt = torch.full((1, 32), torch.nan)
    with pytest.raises(ModelError, match=r"^weight head\.weight is not finite in the run$"):
        next(model_tensors(source, lambda _: spoilt, torch.bfloat16, bits))
