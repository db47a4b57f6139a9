"""A run whose score becomes no better ends at one and the same step, however it got there."""

import io
import json

import pytest
from daily import daily
from rich.console import Console
from small_runs import losses, recipe, run_until, same_bits, weights
from tiny import pages, write_model

from foveal.errors import ConfigError
from foveal.report.run_folder import read_run
from foveal.run import TrainingRun
from foveal.train.checkpoint import checkpoints, explain_stall

SCORES = {"step-1": 0.2, "step-2": 0.5, "step-3": 0.5, "step-4": 0.4, "step-5": 0.9}
"""After step 4 two evaluations in a row were not better than step 2."""


class Scripted(TrainingRun):
    """Scores its evaluations as the script says."""

    def evaluate(self, name, step, request):
        found = super().evaluate(name, step, request)
        file = self.run / "evaluation" / name / "scores.json"
        tree = json.loads(file.read_text())
        tree["anls"]["value"] = SCORES.get(name, 0.0)
        file.write_text(json.dumps(tree))
        return found


@pytest.fixture
def place(tmp_path):
    write_model(tmp_path / "model")
    pages(tmp_path, 4, 3, "train")
    pages(tmp_path, 1, 1, "validation")
    return tmp_path


def patient(place, name="run", **changes):
    settings = {
        "data__validation": str(place / "validation.jsonl"),
        "train__evaluate_every_steps": 1,
        "train__save_every_steps": 100,
        "train__best_metric": "anls",
        "train__stop_after_worse": 2,
    }
    return recipe(place, name, **settings | changes)


def go(chosen):
    text = io.StringIO()
    return Scripted(chosen, Console(file=text, width=1000)).go(), text.getvalue()


def test_it_ends_behind_the_last_evaluation_that_it_waits_for_and_keeps_the_best(place):
    outcome, said = go(patient(place))
    sentence = "Ended at step 4: no anls in 2 evaluations was better than 0.500 at step 2"
    assert sentence in said
    assert (outcome.steps, outcome.stopped, len(losses(place / "run"))) == (4, None, 4)
    assert outcome.report.is_file()
    kept = [one.name for one in checkpoints(place / "run" / "checkpoints")]
    assert kept == ["step-2", "step-3", "step-4"]
    assert read_run(place / "run").remarks == [f"{sentence}."]
    again, said = go(patient(place))  # nothing is left to do
    assert (again.steps, len(losses(place / "run"))) == (4, 4)


@pytest.mark.parametrize("died_behind", daily(3, beside=[2]))
def test_a_run_that_died_on_the_way_ends_at_the_same_step_with_the_same_bits(place, died_behind):
    go(patient(place, "whole"))
    run_until(Scripted(patient(place), Console(quiet=True)), died_behind)
    go(patient(place))
    assert losses(place / "run") == losses(place / "whole")
    assert same_bits(weights(place / "run"), weights(place / "whole"))


def test_with_more_patience_it_goes_on_as_if_it_had_never_ended(place):
    go(patient(place, "whole", train__stop_after_worse=None))
    go(patient(place))
    outcome, _ = go(patient(place, train__stop_after_worse=3))
    assert outcome.steps == 6  # step 5 was better
    assert same_bits(weights(place / "run"), weights(place / "whole"))


def test_scores_of_later_steps_that_an_earlier_start_left_do_not_count(tmp_path):
    for step, value in ((2, 0.5), (4, 0.4), (6, 0.3), (8, 0.9)):
        folder = tmp_path / "evaluation" / f"step-{step}"
        folder.mkdir(parents=True)
        tree = {name: {"value": value} for name in ("anls", "relative_error")}
        (folder / "scores.json").write_text(json.dumps(tree))
    assert explain_stall(tmp_path, "anls", 2, 4) == ""
    assert explain_stall(tmp_path, "anls", 2, 6).startswith("Ended at step 6: no anls in 2")
    assert explain_stall(tmp_path, "anls", 2, 8) == ""
    assert explain_stall(tmp_path, "relative_error", 2, 6) == ""  # smaller is better


def test_patience_without_a_score_to_wait_for_is_refused(place):
    with pytest.raises(ConfigError, match=r"stop_after_worse needs train\.best_metric"):
        TrainingRun(patient(place, train__best_metric=None), Console(quiet=True))
