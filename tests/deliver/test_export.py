"""A run becomes a folder that others read, and that proves itself or says that it does not."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from held import held
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import SIZES, WHOLE_BLOCKS
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from typer.testing import CliRunner

from foveal.adapt.adapters import merge_adapters
from foveal.adapt.quantize import plan_quantization
from foveal.adapt.strategy import rules_of
from foveal.cli import app
from foveal.config import load_recipe, save_recipe
from foveal.deliver import export, model_folder
from foveal.deliver.export import export_run
from foveal.deliver.export_source import find_source, load_tuned
from foveal.deliver.merge import through_four_bits
from foveal.errors import ModelError, RunError
from foveal.evaluate.prediction import read_scores
from foveal.models.loading import load
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.serve.served import open_models
from foveal.storage import AtWorkError

BEFORE_MERGING = "ignore:.*is_gradient_checkpointing:FutureWarning"


@pytest.fixture
def run(lora_run, tmp_path):
    """A copy of a LoRA run that a test may break."""
    return shutil.copytree(lora_run, tmp_path / "run")


@pytest.fixture(scope="module")
def merged(lora_run, tmp_path_factory):
    """The LoRA run as a whole model, rounded and proven."""
    return export_run(lora_run, tmp_path_factory.mktemp("merged") / "mine", merge=True)


@pytest.fixture(scope="module")
def adapter(lora_run, tmp_path_factory):
    """The LoRA run as an adapter, proven."""
    return export_run(lora_run, tmp_path_factory.mktemp("adapter") / "out")


@pytest.fixture(scope="module")
def merged_from_four_bits(qlora_run, tmp_path_factory):
    """The QLoRA run as a whole model, as it is, proven."""
    out = tmp_path_factory.mktemp("four-bits") / "out"
    return export_run(qlora_run, out, merge=True, dtype="float32")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def written_card(folder: Path) -> str:
    return " ".join((folder / "README.md").read_text().split())


def change_recipe(run: Path, **changes: object) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    save_recipe(recipe.model_copy(update=changes), run / "recipe.yaml")


def spoil(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Let the files be written wrongly, behind the back of the export."""
    right = export.write_model

    def wrong(source, folder, *rest):
        right(source, folder, *rest)
        tensors = weights(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "write_model", wrong)


# -- what is written -------------------------------------------------------------------------------


def test_a_full_run_becomes_the_weights_it_ended_with(full_run, tmp_path):
    done = export_run(full_run, tmp_path / "out", dtype="float32")
    assert done.folder == tmp_path / "out"
    written = weights(done.folder)
    base = load_file(full_run.parent / "model" / "model.safetensors")
    learnt = load_file(full_run / "checkpoints" / "step-4" / "weights.safetensors")
    assert written.keys() == base.keys()
    assert all(written[name].equal(learnt.get(name, base[name])) for name in base)
    assert done.proof is not None
    assert done.proof.problems() == []
    assert done.proof.difference == 0
    assert done.proof.equal_answers == done.proof.answers == 8
    assert set(done.proof.scores) == {"anls", "accuracy"}


def test_a_merged_run_is_pefts_merge_rounded_once(lora_run, merged):
    assert merged.folder.name == "mine"
    expected = load_tuned(find_source(lora_run))
    merge_adapters(expected.model)
    written = weights(merged.folder)
    assert written.keys() == expected.model.state_dict().keys()
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(written[name], tensor.bfloat16(), msg=name)
    learnt = "model.layers.0.mlp.down_proj.weight"
    base = load_file(lora_run.parent / "model" / "model.safetensors")
    assert (written[learnt].float() - base[learnt]).abs().max() > 1e-3


def check_pefts_merge(run: Path, folder: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(run.parent / "model")
    expected = PeftModel.from_pretrained(base, run / "adapter").merge_and_unload().state_dict()
    written = weights(folder)
    assert written.keys() == expected.keys()
    for weight, tensor in written.items():
        torch.testing.assert_close(tensor, expected[weight], rtol=1e-5, atol=1e-6, msg=weight)


@pytest.mark.filterwarnings(BEFORE_MERGING)
def test_a_merge_is_what_peft_makes_of_the_adapters_that_the_run_left(
    qlora_run, merged_from_four_bits
):
    check_pefts_merge(qlora_run, merged_from_four_bits.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings(BEFORE_MERGING)
def test_a_merge_of_varied_adapters_is_what_peft_makes_of_them(varied_run, tmp_path):
    done = export_run(varied_run, tmp_path / "out", merge=True, dtype="float32", proof=False)
    check_pefts_merge(varied_run, done.folder)


@pytest.mark.filterwarnings(BEFORE_MERGING)
@pytest.mark.parametrize("merge", [True, False])
def test_ranks_scales_and_lengths_of_rules_are_proven_too(varied_run, tmp_path, merge):
    done = export_run(varied_run, tmp_path / "out", merge=merge)
    assert done.proof is not None
    assert done.proof.problems() == []
    assert done.folder == tmp_path / "out"


def test_what_a_4_bit_base_changed_is_measured_and_told(merged_from_four_bits):
    done = merged_from_four_bits
    assert done.proof is not None
    assert done.proof.difference <= done.proof.difference_limit
    assert (done.proof.four_bit_difference or 0) > 1e-3
    kinds = done.four_bit_norms
    assert "model.layers.*.mlp.down_proj" in kinds
    assert "lm_head" not in kinds  # the head is never held in 4 bits
    # 16 levels leave about a tenth of normally spread weights' norm.
    assert all(0.05 < norm < 0.15 for norm in kinds.values())
    assert any("it learnt on, model.layers.*.mlp.down_proj: " in line for line in done.lines())


def test_four_bits_are_those_that_a_model_is_loaded_in(qlora_run):
    source = find_source(qlora_run)
    recipe = source.recipe
    held = plan_quantization(
        str(source.base), rules_of(recipe.strategy), recipe.quantization, "float32"
    )
    model = load(str(source.base), 3, quantization=held).model
    for layer in source.four_bit_layers:
        packed = model.get_submodule(layer).weight
        expected = dequantize_4bit(packed.data, packed.quant_state).float()
        plain = source.base_tensors[f"{layer}.weight"].read()
        torch.testing.assert_close(through_four_bits(plain, double=True), expected, msg=layer)
    assert len(source.four_bit_layers) > 10


def test_adapters_before_the_language_model_are_told_of(lora_run, run, tmp_path):
    told = []
    export_run(lora_run, tmp_path / "all", proof=False, tell=told.append)
    assert "before the language model" in " ".join(told)
    assert "leave those out without an error" in written_card(tmp_path / "all.unverified")
    told = []
    export_run(lora_run, tmp_path / "merged", merge=True, proof=False, tell=told.append)
    assert "before the language model" not in " ".join(told)
    file = run / "checkpoints" / "step-4" / "weights.safetensors"
    kept = {n: t for n, t in load_file(file).items() if "vision_embed_tokens" not in n}
    save_file(kept, file)
    export_run(run, tmp_path / "language", proof=False, tell=told.append)
    assert "before the language model" not in " ".join(told)
    assert "leave those out" not in written_card(tmp_path / "language.unverified")


@pytest.mark.filterwarnings(BEFORE_MERGING)
def test_an_adapter_folder_is_loaded_by_peft_alone(lora_run, adapter):
    assert adapter.folder.name == "out"
    assert not (adapter.folder / "config.json").exists()
    layers = json.loads((adapter.folder / "adapter_config.json").read_text())["target_modules"]
    assert layers == sorted(layers), "the same bytes each time"
    base = AutoModelForImageTextToText.from_pretrained(lora_run.parent / "model")
    model = PeftModel.from_pretrained(base, adapter.folder).merge_and_unload()
    expected = load_tuned(find_source(lora_run))
    merge_adapters(expected.model)
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)
    assert AutoProcessor.from_pretrained(adapter.folder).num_crops == 3


def test_an_adapter_folder_is_served_folded_in_and_its_base_beside_it(lora_run, adapter):
    served, remark = open_models(str(adapter.folder), "mine", True, lambda _: 2**30)
    assert ([one.name for one in served], remark) == (
        ["mine", "mine-before"],
        "before and after tuning",
    )
    expected = load_tuned(find_source(lora_run))
    merge_adapters(expected.model)
    base = load_file(lora_run.parent / "model" / "model.safetensors")
    after, before = (one.loaded.model.state_dict() for one in served)
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(after[name], tensor, msg=name)
        assert before[name].equal(base[name])


def test_the_folder_that_a_run_leaves_at_its_end_is_written_so_too(
    qlora_run, merged_from_four_bits
):
    written, final = weights(merged_from_four_bits.folder), weights(qlora_run / "final")
    assert written.keys() == final.keys()
    assert all(written[name].equal(final[name]) for name in final)
    tokenizer = (qlora_run.parent / "model" / "tokenizer.json").read_bytes()
    assert (qlora_run / "final" / "tokenizer.json").read_bytes() == tokenizer


def test_transformers_opens_the_folder_by_its_auto_classes(merged):
    folder = merged.folder
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.num_crops == 3  # as in the run; the base's own files say 4
    stated = GenerationConfig.from_pretrained(folder)
    assert sorted(stated.eos_token_id) == sorted(processor.end_ids)


def test_nothing_that_may_run_code_is_written(merged, adapter):
    files = [path for one in (merged, adapter) for path in one.folder.parent.rglob("*")]
    kinds = {path.suffix for path in files if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja", ".md"}


def test_large_models_are_written_in_shards_that_open_as_one(full_run, tmp_path):
    small = {"dtype": "float32", "proof": False, "max_shard_bytes": 100_000}
    folder = export_run(full_run, tmp_path / "out", **small).folder
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    written = weights(full_run / "final")
    assert json.loads((folder / "model.safetensors.index.json").read_text())[
        "weight_map"
    ].keys() == (written.keys())
    assert all(model[name].equal(tensor) for name, tensor in written.items())


def test_the_card_tells_recipe_data_scores_and_base_but_no_path_of_this_machine(lora_run, merged):
    card = (merged.folder / "README.md").read_text()
    for part in ("# mine", "train.jsonl", "| `lora.rank` | `4` |", "12 examples", "| anls | "):
        assert part in card, part
    assert "8 of 8 equal" in card
    assert str(lora_run.parent) not in card
    assert "Unverified" not in card


# -- which checkpoint ------------------------------------------------------------------------------


def test_a_step_can_be_chosen(full_run, tmp_path):
    done = export_run(full_run, tmp_path / "out", checkpoint="2", dtype="float32", proof=False)
    written = weights(done.folder)
    stored = load_file(full_run / "checkpoints" / "step-2" / "weights.safetensors")
    assert all(written[name].equal(tensor) for name, tensor in stored.items())
    scores = read_scores(full_run / "evaluation" / "step-2" / "scores.json")
    assert find_source(full_run, "2").scores == scores  # what a proof of it is held against


def set_score(run: Path, step: str, value: float) -> None:
    file = run / "evaluation" / step / "scores.json"
    tree = json.loads(file.read_text())
    tree["anls"] |= {"value": value, "low": 0.0, "high": 1.0}
    file.write_text(json.dumps(tree))


def test_best_is_the_kept_step_with_the_highest_first_metric(run):
    set_score(run, "step-2", 0.9)
    set_score(run, "after", 0.5)
    source = find_source(run, "best")
    assert source.checkpoint.name == "step-2"
    assert source.notes == ("best of the kept steps by anls: step 2 (0.900)",)


def test_a_better_step_whose_checkpoint_is_gone_is_named(run):
    set_score(run, "step-2", 0.9)
    shutil.rmtree(run / "checkpoints" / "step-2")
    source = find_source(run, "best")
    assert source.checkpoint.name == "step-4"
    assert "step 2 scored 0.900 but its checkpoint is not kept" in source.notes[1]


def test_a_step_that_is_not_kept_is_an_error_that_lists_those_that_are(run):
    with pytest.raises(RunError, match=r"--checkpoint 3: give last, best, or .* kept: 2, 4$"):
        find_source(run, "3")


# -- what is wrong ---------------------------------------------------------------------------------


def test_a_spoilt_weight_fails_the_proof_and_marks_the_folder(lora_run, tmp_path, monkeypatch):
    def change(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][0] += 0.5

    spoil(monkeypatch, change)
    arguments = ["export", str(lora_run), str(tmp_path / "out"), "--merge"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert "FAILED: logits differ by" in result.output
    assert not (tmp_path / "out").exists()
    marked = tmp_path / "out.unverified"
    assert json.loads((marked / "proof.json").read_text())["problems"]
    assert "**Unverified**: logits differ" in (marked / "README.md").read_text()


def test_adapters_that_were_left_out_fail_the_proof(lora_run, tmp_path, monkeypatch):
    base = load_file(lora_run.parent / "model" / "model.safetensors")
    spoil(monkeypatch, lambda tensors: tensors.update({n: t.bfloat16() for n, t in base.items()}))
    done = export_run(lora_run, tmp_path / "out", merge=True)
    assert done.failed
    assert done.folder == tmp_path / "out.unverified"


def test_a_weight_that_makes_no_number_fails_the_proof(run, tmp_path, monkeypatch):
    def change(tensors):
        tensors["model.norm.weight"][0] = torch.nan

    spoil(monkeypatch, change)
    turns = [{"user": f"{one}?", "assistant": str(one)} for one in range(3)]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"id": "a", "conversations": turns}))
    data = load_recipe(run / "recipe.yaml").data
    change_recipe(run, data=data.model_copy(update={"validation": tmp_path / "turns.jsonl"}))
    done = export_run(run, tmp_path / "out", merge=True)
    assert done.proof is not None
    logits, rounded, answers = done.proof.problems()
    assert "logits differ by nan" in logits
    assert "moves logits by nan" in rounded
    assert answers == "3 of 3 answers differ"


def test_a_proof_that_breaks_off_leaves_a_marked_folder(full_run, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "prove", stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(full_run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.unverified"]


def test_a_score_outside_the_runs_interval_fails_the_proof(run, tmp_path):
    file = run / "evaluation" / "after" / "scores.json"
    tree = json.loads(file.read_text())
    tree["anls"] |= {"value": 0.95, "low": 0.9, "high": 1.0}
    file.write_text(json.dumps(tree))
    done = export_run(run, tmp_path / "out")
    assert done.proof is not None
    assert [problem.partition(" is ")[0] for problem in done.proof.problems()] == ["anls"]
    assert "outside the run's [0.900, 1.000]" in done.proof.problems()[0]


def test_without_a_proof_the_folder_is_marked(full_run, tmp_path):
    done = export_run(full_run, tmp_path / "out", proof=False)
    assert done.folder == tmp_path / "out.unverified"
    assert "**Unverified**" in (done.folder / "README.md").read_text()
    assert not done.failed


def test_a_base_that_is_gone_is_named(run, tmp_path):
    change_recipe(run, model=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"its base model, .*nowhere. in recipe.yaml, is not"):
        export_run(run, tmp_path / "out", merge=True)


def test_another_base_than_the_runs_is_refused(run, tmp_path):
    base = shutil.copytree(load_recipe(run / "recipe.yaml").model, tmp_path / "other")
    tensors = weights(base)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :8].contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    change_recipe(run, model=str(base))
    with pytest.raises(ModelError, match="is not the model that this run started from"):
        export_run(run, tmp_path / "out", merge=True)


def test_a_base_of_the_same_shape_with_other_weights_is_refused(run, qlora_run, tmp_path):
    """As Phi-3-vision has the names and shapes of Phi-3.5-vision."""
    for number, (original, sizes) in enumerate(((run, SIZES), (qlora_run, WHOLE_BLOCKS))):
        base = tmp_path / f"base-{number}"
        write_tiny(base, 1, sizes)
        copy = shutil.copytree(original, tmp_path / f"run-{number}")
        change_recipe(copy, model=str(base))
        with pytest.raises(ModelError, match="names and shapes are the same, the weights are oth"):
            export_run(copy, tmp_path / "out", merge=True)


def test_missing_examples_are_told_before_anything_is_written(run, tmp_path):
    data = load_recipe(run / "recipe.yaml").data
    change_recipe(run, data=data.model_copy(update={"validation": tmp_path / "gone.jsonl"}))
    with pytest.raises(RunError, match=r"gone.jsonl: the run's examples are not there"):
        export_run(run, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_an_existing_folder_is_never_overwritten(full_run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="is there already"):
        export_run(full_run, tmp_path / "out")


def test_a_torn_write_leaves_nothing(full_run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_folder, "write_model_settings", full)
    with pytest.raises(RunError, match="No space left on device; free space, run again"):
        export_run(full_run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(full_run, tmp_path):
    """A limit on a file's size is the nearest to a full disk that needs no root."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match="File too large"):
            export_run(full_run, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_writing_leaves_nothing(full_run, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder, "write_model_settings", stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(full_run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_is_not_taken_for_an_export(full_run, tmp_path):
    torn = tmp_path / ".out.unverified.part"
    torn.mkdir()
    (torn / "model-00001-of-00009.safetensors").write_bytes(b"half")
    done = export_run(full_run, tmp_path / "out", proof=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out.unverified"]
    assert not list(done.folder.glob("model-*"))


def test_adapters_beside_whole_weights_need_a_merge(run, tmp_path):
    file = run / "checkpoints" / "step-4" / "weights.safetensors"
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    tensors["model.norm.weight"] = torch.full((32,), 1.5)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"1 whole weights, such as model.norm.weight"):
        export_run(run, tmp_path / "out")
    done = export_run(run, tmp_path / "merged", merge=True, proof=False)
    assert (weights(done.folder)["model.norm.weight"] == 1.5).all()


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path):
    result = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "out")])
    assert isinstance(result.exception, RunError)
    assert "no recipe.yaml; give the folder of a run" in str(result.exception)


def test_a_folder_that_another_export_writes_is_left_to_it(run, tmp_path):
    with held(tmp_path / ".out.lock"), pytest.raises(AtWorkError, match="at work in it"):
        export_run(run, tmp_path / "out")
    assert [one.name for one in tmp_path.glob("*out*")] == [".out.lock"]
    assert export_run(run, tmp_path / "out", proof=False).folder == tmp_path / "out.unverified"
    assert not (tmp_path / ".out.lock").exists()
