"""What the reader of run folders promises."""

import json

import pytest
from run_folders import evaluate, make_examples, make_run, make_whole_run, predict

from foveal.config import Recipe, TrainSettings
from foveal.errors import ConfigError, DataError, RunError
from foveal.evaluate.prediction import Prediction
from foveal.report.run_folder import read_run, settings_beside_defaults


def test_a_whole_run_is_read(tmp_path):
    run = read_run(make_whole_run(tmp_path))
    assert run.name == "run"
    assert run.recipe.model == "phi3-vision-tiny"
    assert len(run.measures.steps) == 30
    assert (run.before.name, run.latest.name) == ("before", "after")
    assert run.latest.scores["accuracy"].value == pytest.approx(11 / 12)
    assert (run.incidents, run.machine) == ([], {})


def test_steps_are_in_the_order_of_numbers_not_of_letters(tmp_path):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    for name in ("step-1000", "step-200", "before", "step-"):
        evaluate(run, name, predict())
    found = read_run(run)
    assert [step for step, _ in found.steps] == [200, 1000]
    assert found.latest.title == "Step 1000"
    assert found.before.name == "before"


def test_a_single_evaluation_is_the_latest_and_has_no_before(tmp_path):
    run = make_run(tmp_path / "run", None)
    evaluate(run, "before", predict())
    found = read_run(run)
    assert (found.before, found.latest.name) == (None, "before")


def test_scores_that_were_never_written_are_worked_out(tmp_path):
    run = make_whole_run(tmp_path)
    path = run / "evaluation" / "after" / "scores.json"
    written = read_run(run).latest.scores
    path.unlink()
    found = read_run(run).latest.scores
    assert {name: score.value for name, score in found.items()} == {
        name: score.value for name, score in written.items()
    }


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no run, it has none of recipe\.yaml"):
        read_run(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    run = make_whole_run(tmp_path)
    (run / "machine.json").write_text("{")
    with pytest.raises(DataError, match=r"machine\.json: not JSON"):
        read_run(run)
    (run / "recipe.yaml").write_text("modle: x")
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        read_run(run)


def test_incidents_and_machine_are_read_as_they_are(tmp_path):
    run = make_run(tmp_path / "run", None)
    (run / "incidents.jsonl").write_text('{"step": 3, "kind": "skipped"}\n{"step": 4, "ki')
    (run / "machine.json").write_text(json.dumps({"cpu": "two cores"}))
    found = read_run(run)
    assert found.incidents == [{"step": 3, "kind": "skipped"}]
    assert found.machine == {"cpu": "two cores"}


def test_the_score_of_an_answer_is_the_written_one_or_worked_out():
    answer = Prediction("a", "no", answers=("no",), scores={"accuracy": 0.25})
    assert answer.score("accuracy") == 0.25
    assert answer.score("anls") == 1
    assert answer.score("auroc") is None


def test_settings_at_their_default_are_not_listed(tmp_path):
    recipe = Recipe(
        model="m",
        run=tmp_path,
        train=TrainSettings(epochs=3),
        precision="fp16",
        published={"accuracy": 0.9},
        base={"file": "below.yaml"},
    )
    assert settings_beside_defaults(recipe) == {
        "model": "m",
        "run": tmp_path,
        "train.epochs": 3,
        "precision": "fp16",
    }


def test_evaluations_of_other_examples_are_left_out_and_named(tmp_path):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    evaluate(run, "before", predict(count=4))  # then the validation file was changed
    evaluate(run, "step-1", predict())
    evaluate(run, "after", predict())
    found = read_run(run)
    assert (list(found.evaluations), found.before) == (["step-1", "after"], None)
    (remark,) = found.remarks
    assert "before asked something else than after (data changed)" in remark


def test_evaluations_under_other_settings_are_left_out_even_of_the_same_examples(tmp_path):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    for name, tokens in (("before", 4), ("after", 8)):
        evaluate(run, name, predict())
        what = {"model": name, "max_new_tokens": tokens}
        (run / "evaluation" / name / "evaluation.json").write_text(json.dumps(what))
    found = read_run(run)
    assert found.before is None
    assert "(max_new_tokens changed)" in found.remarks[0]


def test_an_evaluation_that_is_being_made_is_compared_as_far_as_it_is(tmp_path):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    evaluate(run, "before", predict())
    evaluate(run, "after", predict(count=5))
    (run / "evaluation" / "after" / "scores.json").unlink()
    found = read_run(run)
    assert (found.before.name, found.remarks) == ("before", [])
