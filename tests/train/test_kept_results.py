"""A result is kept for what it is a result of: weights, data, settings; else it is made again."""

import io
import json
import shutil

import pytest
from daily import daily
from rich.console import Console
from small_runs import recipe, run, run_until
from tiny import make_image, pages, write_model

from foveal.evaluate import evaluation
from foveal.evaluate.prediction import read_predictions
from foveal.run import TrainingRun
from foveal.train.checkpoint import best_checkpoint


@pytest.fixture
def place(place):
    write_model(place / "other-model", 1)
    pages(place, 3, 3, "other")
    return place


def validated(place, name="run", **changes):
    data = {"data__validation": str(place / "validation.jsonl"), "train__evaluate_every_steps": 2}
    return recipe(place, name, **data | changes)


def answers(place, name, moment):
    folder = place / name / "evaluation" / moment
    return [
        (one.key, one.prediction, one.answers)
        for one in read_predictions(folder / "predictions.jsonl")
    ]


def said(chosen):
    text = io.StringIO()
    TrainingRun(chosen, Console(file=text, width=1000)).go()
    return text.getvalue()


OTHER = {"data__validation": "other.jsonl"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (OTHER, "(data changed)"),
        pytest.param(
            {"evaluate__max_new_tokens": 2}, "(max_new_tokens changed)", marks=pytest.mark.slow
        ),
        ({"evaluate__choices": ["It is 00.", "It is 01."]}, "(choices changed)"),
        pytest.param({"evaluate__max_examples": 1}, "(data changed)", marks=pytest.mark.slow),
    ],
)
def test_what_answers_hang_on_is_changed_in_a_stopped_run(place, changes, reason):
    changes = {
        name: str(place / value) if name == "data__validation" else value
        for name, value in changes.items()
    }
    run(validated(place, "whole", **changes))
    run_until(TrainingRun(validated(place), Console(quiet=True)), 5)
    text = said(validated(place, **changes))
    assert reason in text
    assert "before, step-2, step-4 in" in text
    for moment in ("before", "step-4", "after"):
        assert answers(place, "run", moment) == answers(place, "whole", moment), moment
    # Its weights are gone: it stays, but nobody takes it for one of this run.
    assert not (place / "run" / "evaluation" / "step-2").exists()
    assert (place / "run" / "evaluation" / "step-2.other-1").is_dir()


def test_scores_alone_are_worked_out_again_without_the_model(place, monkeypatch):
    run(validated(place))
    monkeypatch.setattr(evaluation, "predict", None)
    outcome = run(validated(place, evaluate__metrics=["exact_match"]))
    assert list(outcome.before) == list(outcome.after) == ["exact_match"]


def test_a_corrected_answer_is_scored_as_it_is_now(place):
    run(validated(place))
    file = place / "validation.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    given = answers(place, "run", "before")[0][1]
    lines[0]["conversations"][0]["answers"] = [given or "!"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = run(validated(place))
    assert answers(place, "run", "before")[0][2] == (given or "!",)
    assert outcome.before["accuracy"].value >= (0.25 if given else 0)


def test_another_picture_of_the_same_size_is_another_question(place):
    run(validated(place))
    make_image(place / "images" / "validation-1.png", 77, (80, 40))
    run(validated(place, "whole"))
    assert "(data changed)" in said(validated(place))
    assert answers(place, "run", "before") == answers(place, "whole", "before")


def test_before_is_of_the_model_that_the_run_begins_from(place):
    run_until(TrainingRun(validated(place, train__save_every_steps=9), Console(quiet=True)), 1)
    other = {"model": str(place / "other-model")}
    run(validated(place, "whole", **other))
    assert answers(place, "run", "before") != answers(place, "whole", "before")
    assert "(weights changed) made again" in said(validated(place, **other))
    assert answers(place, "run", "before") == answers(place, "whole", "before")


def test_a_step_that_is_taken_otherwise_is_evaluated_again(place):
    run(validated(place))
    shutil.rmtree(place / "run" / "checkpoints")
    slower = {"train__learning_rate": 1e-3}
    run(validated(place, "whole", **slower))
    run(validated(place, **slower))
    for moment in ("step-2", "after"):
        assert answers(place, "run", moment) == answers(place, "whole", moment)


@pytest.mark.parametrize("strategy", daily("lora", beside=["full"]))
def test_what_stands_is_answered_once(place, monkeypatch, strategy):
    chosen = validated(place, strategy=strategy)
    run_until(TrainingRun(chosen, Console(quiet=True)), 1)  # before any checkpoint
    shutil.rmtree(place / "run" / "checkpoints", ignore_errors=True)
    answered = []
    usual = evaluation.predict

    def seen(loaded, questions, settings):
        answered.append(len(questions))
        return usual(loaded, questions, settings)

    monkeypatch.setattr(evaluation, "predict", seen)
    run(chosen)
    assert answered == [4, 4, 4]  # step-2, step-4, after
    run(chosen)
    assert answered == [4, 4, 4]


def test_the_best_checkpoint_is_not_chosen_by_scores_on_other_data(place):
    best = {"train__best_metric": "anls", "train__keep_checkpoints": 9}
    run(validated(place, **best))
    folder = place / "run" / "evaluation"
    for moment, value in (("step-2", 0.9), ("step-4", 0.1), ("after", 0.2)):
        scores = json.loads((folder / moment / "scores.json").read_text())
        scores["anls"]["value"] = value
        (folder / moment / "scores.json").write_text(json.dumps(scores))
    assert best_checkpoint(place / "run", "anls").name == "step-2"
    run(validated(place, data__validation=str(place / "other.jsonl"), **best))
    assert best_checkpoint(place / "run", "anls").name == "step-6"
