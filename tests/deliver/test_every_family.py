"""A tuned model of any family leaves as transformers and peft alone read it."""

import json
import re

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from daily import daily
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_runs import recipe, run
from stranger import Stranger
from tiny import pages
from tiny_models import write_tiny
from transformers import AutoModelForImageTextToText

from foveal.deliver.export import export_run
from foveal.deliver.export_source import find_source
from foveal.deliver.open import open_model
from foveal.errors import ModelError
from foveal.models.loading import find_family

FAMILIES = daily("qwen3_vl", beside=["qwen2_5_vl", "gemma3", "llava", "smolvlm"])
OLD_LAYOUTS = {
    "qwen2_5_vl": [
        (r"^model\.visual\.", "visual."),
        (r"^model\.language_model\.", "model."),
    ],
    "llava": [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    ],
    "gemma3": [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    ],
}
"""How older files on the hub name the same weights."""

PAN_AND_SCAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 8,
    "pan_and_scan_min_ratio_to_activate": 1.0,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def furnish(folder, family):
    write_tiny(family, folder / "model")
    weights = folder / "model" / "model.safetensors"
    tensors = load_file(weights)
    renamed = {}
    for name, tensor in tensors.items():
        stored = name
        for pattern, old in OLD_LAYOUTS.get(family, ()):
            changed = re.sub(pattern, old, stored)
            if changed != stored:
                stored = changed
                break
        renamed[stored] = tensor
    save_file(renamed, weights, metadata={"format": "pt"})
    pages(folder, 3, 2, "train")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def place(request, tmp_path_factory):
    return furnish(tmp_path_factory.mktemp(request.param), request.param)


def tuned(place, name, **changes):
    made = recipe(place, name, train__max_steps=2, train__epochs=1, **changes)
    run(made)
    return place / name


@pytest.fixture(scope="module")
def stranger():
    one = Stranger()
    yield one
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_a_whole_model_has_the_base_files_names_and_opens_alone(
    place, strategy, stranger, tmp_path
):
    folder = tuned(place, f"whole-{strategy}", strategy=strategy)
    done = export_run(folder, tmp_path / "out", merge=True, dtype="float32")
    assert done.proof is not None
    assert done.proof.problems() == []
    base, written = (load_file(one / "model.safetensors") for one in (place / "model", done.folder))
    assert {name: one.shape for name, one in written.items()} == {
        name: one.shape for name, one in base.items()
    }
    assert any(not written[name].equal(base[name]) for name in base)
    logits = stranger.logits(done.folder, None, tmp_path / "exported")
    final = stranger.logits(folder / "final", None, tmp_path / "final")
    torch.testing.assert_close(logits, final)


@pytest.mark.slow
@pytest.mark.parametrize("place", daily("qwen3_vl", beside=["gemma3"]), indirect=True)
def test_a_run_on_four_bits_leaves_as_a_whole_model_by_the_base_files_names(
    place, stranger, tmp_path
):
    folder = tuned(place, "whole-qlora", strategy="qlora")
    done = export_run(folder, tmp_path / "out", merge=True, dtype="float32")
    assert done.proof is not None
    assert done.proof.problems() == []
    base, written = (load_file(one / "model.safetensors") for one in (place / "model", done.folder))
    assert {name: one.shape for name, one in written.items()} == {
        name: one.shape for name, one in base.items()
    }
    assert {one.dtype for one in written.values()} == {torch.float32}
    logits = stranger.logits(done.folder, None, tmp_path / "exported")
    final = stranger.logits(folder / "final", None, tmp_path / "final")
    torch.testing.assert_close(logits, final)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qianfan_ocr", "ernie4_5_vl_moe"])
def test_a_whole_model_of_regrouped_weights_is_what_peft_and_transformers_write_of_the_adapter(
    family, tmp_path
):
    folder = tuned(furnish(tmp_path, family), "run", strategy="lora")
    done = export_run(folder, tmp_path / "out", merge=True, dtype="float32")
    assert done.proof is not None
    assert done.proof.problems() == []
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / one / "model.safetensors") for one in ("out", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, one in theirs.items():
        torch.testing.assert_close(ours[name], one, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_5_moe", "glm4v_moe"])
def test_an_adapter_beside_fused_experts_opens_with_peft_alone_and_knows_its_base(
    stranger, family, tmp_path
):
    """Loading puts the files' experts into one tensor, which no file holds under its name."""
    folder = tuned(furnish(tmp_path, family), "run", strategy="lora")
    adapters = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(".self_attn." in name for name in adapters)
    assert not any(".experts." in name for name in adapters)
    done = export_run(folder, tmp_path / "out")
    assert done.proof is not None
    assert done.proof.problems() == []
    exported = stranger.logits(tmp_path / "model", done.folder, tmp_path / "exported")
    own = stranger.logits(tmp_path / "model", folder / "adapter", tmp_path / "own")
    assert exported.equal(own)
    opened = open_model(str(folder)).model
    opened.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = opened(input_ids=torch.tensor([[5, 40, 60, 71, 9]])).logits
    base = stranger.logits(tmp_path / "model", None, tmp_path / "base")
    # Folded into its layers: sums in another order, and nothing beside what was learnt.
    assert (logits - own).abs().max() < 1e-2 * (base - own).abs().max()
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    one = next(name for name in tensors if ".experts." in name)
    tensors[one] += 1.0
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is not the model that this run started from"):
        export_run(folder, tmp_path / "other")


@pytest.mark.slow
def test_an_adapter_opens_with_peft_alone_and_gives_what_the_run_gave(place, stranger, tmp_path):
    folder = tuned(place, "adapter-run", strategy="lora")
    done = export_run(folder, tmp_path / "out")
    assert done.proof is not None
    assert done.proof.problems() == []
    exported = stranger.logits(place / "model", done.folder, tmp_path / "exported")
    own = stranger.logits(place / "model", folder / "adapter", tmp_path / "own")
    assert exported.equal(own)


def test_processor_files_and_formats_come_along(place, tmp_path):
    folder = tuned(place, "files", strategy="full")
    out = export_run(folder, tmp_path / "out", proof=False).folder
    for path in (place / "model").iterdir():
        if path.suffix != ".safetensors":
            assert (out / path.name).is_file(), path.name
    config = json.loads((out / "config.json").read_text())
    kinds = [one.get("dtype") for one in (config, *config.values()) if isinstance(one, dict)]
    assert set(kinds) <= {"bfloat16", None}


def test_every_name_in_the_files_is_a_weight_of_the_model(place):
    folder = tuned(place, "names", strategy="lora")
    source = find_source(folder)
    own = {name for name, _ in source.family.model_class(source.family.config).named_parameters()}
    assert own <= source.base_tensors.keys()


def test_settings_of_images_go_from_the_recipe_to_the_exported_folder(tmp_path):
    write_tiny("qwen3_vl", tmp_path / "model")
    pages(tmp_path, 2, 1, "train")
    folder = tuned(tmp_path, "few", strategy="full", data__image_settings={"max_pixels": 64 * 64})
    out = export_run(folder, tmp_path / "out", dtype="float32", proof=False).folder
    costs = [
        find_family(str(one)).load_processor(str(one), budget).shape(300, 200).features
        for one, budget in (
            (tmp_path / "model", None),
            (tmp_path / "model", {"max_pixels": 64 * 64}),
            (out, None),
            (folder / "final", None),
        )
    ]
    assert costs[0] > costs[1] == costs[2] == costs[3]


@pytest.mark.parametrize(
    ("family", "settings", "why"),
    [
        ("qwen3_vl", {"max_pixel": 1}, "max_pixel is no setting of Qwen2VLImageProcessorPil"),
        ("gemma3", PAN_AND_SCAN, "heeds do_pan_and_scan.* only where it is called"),
    ],
)
def test_settings_that_no_image_is_read_by_are_refused(family, settings, why, tmp_path):
    write_tiny(family, tmp_path)
    with pytest.raises(ModelError, match=why):
        find_family(str(tmp_path)).load_processor(str(tmp_path), settings)
