"""Plain Python asks a model: paths, Pillow images or bytes in, text out."""

import json
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from devices import CPU
from PIL import Image
from pretend_gpu import pretend_gpu
from tiny import SIZES, make_image
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.data.example import read_examples
from foveal.deliver.answerer import Answerer
from foveal.deliver.export import export_run
from foveal.deliver.open import open_model
from foveal.errors import DataError, ModelError, RunError, UserError
from foveal.evaluate.prediction import read_predictions
from foveal.machine import DTYPES
from foveal.serve.served import open_models


@pytest.fixture(scope="module")
def model(full_run):
    return foveal.load(full_run)


@pytest.fixture
def drawn(tmp_path):
    return make_image(tmp_path / "picture.png", 7)


def test_it_answers_as_the_runs_own_evaluation_did(model, full_run, place):
    recorded = read_predictions(full_run / "evaluation" / "after" / "predictions.jsonl")
    examples = list(read_examples(place / "validation.jsonl"))
    asked = [
        ([place / "images" / name for name in one.turns[0].images], one.turns[0].user)
        for one in examples
    ]
    answers = model.answer_many(asked, max_new_tokens=4)
    assert answers == [one.prediction for one in recorded]
    assert len(answers) == 10


def test_a_path_a_pillow_image_and_bytes_give_the_same_answer(model, drawn):
    image = Image.open(drawn)
    given = [drawn, str(drawn), image, drawn.read_bytes(), [drawn]]
    answers = model.answer_many([(one, "What is the number?") for one in given])
    assert len(set(answers)) == 1
    assert isinstance(answers[0], str)
    assert model.answer(image, "What is the number?") == answers[0]


def test_several_pictures_and_none_at_all_can_be_asked_about(model, drawn, tmp_path):
    other = make_image(tmp_path / "other.png", 8)
    question = "Which is larger?"
    together = model.answer_many([([drawn, other], question), ([], question), (other, question)])
    apart = [model.answer(images, question) for images in ([drawn, other], [], other)]
    assert together == apart


def test_no_question_is_no_answer(model):
    assert model.answer_many([]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"no picture", "picture 1 of question 1"),
        (3.5, "give a path, a Pillow image or bytes, not float"),
        ("nowhere.png", r"nowhere\.png: No such file or directory; give a picture's path"),
        ("nowhere.mp4", r"nowhere\.mp4: No such file or directory; give a clip's path"),
        ("~/nowhere.png", r"^HOME/nowhere\.png: No such file"),
        ("https://example.org/a.png", r"^https://example\.org/a\.png: a picture on the web; fetch"),
    ],
)
def test_what_cannot_be_opened_is_named(model, given, said):
    # Each process of the tests has a home of its own, and the same cases.
    with pytest.raises(DataError, match=said.replace("HOME", re.escape(str(Path.home())))):
        model.answer([given], "What is it?")


def test_tags_that_do_not_match_the_pictures_are_named(model, drawn):
    with pytest.raises(DataError, match=r"question 1: image tags .* do not match 1 images"):
        model.answer(drawn, "<|image_1|> and <|image_2|>?")


def test_a_run_that_has_not_ended_is_a_clear_error(full_run, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes((full_run / "recipe.yaml").read_bytes())
    with pytest.raises(ModelError, match="this run has not ended"):
        foveal.load(tmp_path)


def test_what_people_call_is_typed_and_documented():
    for function in (foveal.load, Answerer.answer, Answerer.answer_many):
        assert "Args:" in (function.__doc__ or "")
    assert get_type_hints(Answerer.answer)["return"] is str
    assert get_type_hints(Answerer.answer_many)["return"] == list[str]


def test_importing_foveal_loads_neither_torch_nor_transformers():
    heavy = "{'torch', 'transformers', 'PIL'}"
    probe = f"import foveal, sys\nfoveal.load\nprint({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_exported_adapter_answers_as_its_run_does(lora_run, tmp_path, drawn):
    folder = export_run(lora_run, tmp_path / "out", proof=False).folder
    question = "What is the number?"
    answer = foveal.load(folder).answer(drawn, question)
    assert answer == foveal.load(lora_run).answer(drawn, question)
    # Its folder holds no configuration; its base says which examples are long.
    assert open_model(str(folder)).processor.long_context_tokens == SIZES.original_context


def test_an_adapter_without_a_base_is_a_clear_error(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        foveal.load(tmp_path)


def test_an_adapter_within_its_run_answers_as_the_run_does(lora_run, drawn):
    question = "What is the number?"
    answer = foveal.load(lora_run / "adapter").answer(drawn, question)
    assert answer == foveal.load(lora_run).answer(drawn, question)
    assert answer != foveal.load(lora_run.parent / "model").answer(drawn, question)


def copy_adapter(run, folder, **changes):
    shutil.copytree(run / "adapter", folder)
    tree = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(tree))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "gone"}, "base that it names cannot be read: model gone"),
        ({"peft_type": "PROMPT_TUNING"}, "an adapter of the kind PROMPT_TUNING"),
        ({"target_modules": ["no_such_layer"]}, "does not fit its base"),
        ({"target_modules": ["o_proj"]}, "do not meet, such as"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_never_passed_over(
    lora_run, tmp_path, changes, said
):
    folder = copy_adapter(lora_run, tmp_path / "adapter", **changes)
    with pytest.raises(ModelError, match=f"^[^\n]*{said}[^\n]*$"):
        foveal.load(folder)


def test_an_adapter_without_its_weights_is_refused(lora_run, tmp_path):
    folder = copy_adapter(lora_run, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model.safetensors, are missing"):
        foveal.load(folder)


def test_a_place_within_a_run_or_a_model_names_the_folder_to_give(lora_run, place):
    for part in ("checkpoints", "checkpoints/step-4", "evaluation", "recipe.yaml"):
        with pytest.raises(ModelError, match=f"give the folder {re.escape(str(lora_run))}$"):
            foveal.load(lora_run / part)
    with pytest.raises(ModelError, match=f"a file; give the folder {place / 'model'}$"):
        foveal.load(place / "model" / "config.json")
    with pytest.raises(ModelError, match="no model in it"):
        foveal.load(place / "images")
    with pytest.raises(RunError, match=f"give the folder {re.escape(str(lora_run))}$"):
        export_run(lora_run / "adapter", place / "never")


@pytest.mark.parametrize("question", ["", "  ", "page.PNG", __file__])
def test_ask_without_a_question_is_an_error_and_asks_no_file_name(full_run, drawn, question):
    asked = CliRunner().invoke(app, ["ask", str(full_run), str(drawn), question])
    assert isinstance(asked.exception, UserError)
    assert "no question" in str(asked.exception)


def test_a_picture_that_is_too_elongated_is_named(model, tmp_path):
    path = tmp_path / "ribbon.png"
    image = Image.new("RGB", (2000, 1))
    image.save(path)
    with pytest.raises(DataError, match=r"ribbon\.png: .*2000 x 1 pixels is too elongated"):
        model.answer(path, "What?")
    for given in (image, path.read_bytes()):
        with pytest.raises(DataError, match=r"picture 2 of question 1: .* too elongated"):
            model.answer([Image.new("RGB", (60, 40)), given], "What?")


def test_ask_prints_the_answer_alone_or_as_json(model, full_run, drawn):
    expected = model.answer(drawn, "What is it?", max_new_tokens=5)
    common = [str(full_run), str(drawn), "What is it?", "--max-new-tokens", "5"]
    plain = CliRunner().invoke(app, ["ask", *common])
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == f"{expected}\n"
    tree = json.loads(CliRunner().invoke(app, ["ask", *common, "--json"]).stdout)
    assert tree == {
        "model": str(full_run),
        "images": [str(drawn)],
        "question": "What is it?",
        "answer": expected,
    }


def test_bytes_of_any_opened_kind_are_taken(model, drawn):
    held = BytesIO()
    Image.open(drawn).save(held, "BMP")
    question = "What is it?"
    assert model.answer(held.getvalue(), question) == model.answer(drawn, question)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_on_a_gpu_it_computes_in_the_format_of_its_run(
    precision, full_run, drawn, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(full_run, run)
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(stored | {"precision": precision}))
    assert format_of(foveal.load(run)) == (CPU, "float32")
    with pretend_gpu(monkeypatch) as gpu:
        monkeypatch.setattr("foveal.deliver.open.pick_device", lambda: gpu)
        model = foveal.load(run)
        assert format_of(model) == (gpu.type, precision)
        assert isinstance(model.answer(drawn, "What is the number?", max_new_tokens=2), str)
        # A model that no run tells of, as one that was exported.
        assert format_of(foveal.load(run / "final")) == (gpu.type, "bf16")
        # Beside the tuned model, the one that it began from.
        served, _ = open_models(str(run), None, True, lambda _: 2**30)
        assert [format_of(one) for one in served] == [(gpu.type, precision)] * 2


def format_of(opened):
    loaded = getattr(opened, "_loaded", None) or opened.loaded
    names = {dtype: name for name, dtype in DTYPES.items()}
    (found,) = {(one.device.type, names[one.dtype]) for one in loaded.model.parameters()}
    return found
