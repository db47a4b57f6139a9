"""What a run of a few steps learns, and says; rows and rules that teach nothing."""

import io
import json

import pytest
import torch
from daily import daily
from rich.console import Console
from small_runs import losses, recipe, run, same_bits, weights
from tiny import make_image, make_model, turn, write_data
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import TrainSettings, save_recipe
from foveal.errors import ModelError, RunError
from foveal.report.report import write_report
from foveal.run import TrainingRun
from foveal.train.optim import rate_scale


def said(chosen):
    text = io.StringIO()
    return TrainingRun(chosen, Console(file=text, width=1000)).go(), text.getvalue()


DEFAULTS = {"train__epochs": 1, "train__examples_per_step": 64, "train__warmup_steps": 50}


def test_twelve_rows_under_the_default_settings_teach_something(place):
    outcome, text = said(recipe(place, **DEFAULTS))
    base = make_model(place / "model").model.state_dict()
    tuned = weights(outcome.run)
    assert any(not tuned[name].equal(base[name]) for name in tuned)
    assert json.loads((outcome.run / "metrics.jsonl").read_text())["learning_rate"] == 1e-2
    assert (
        "train.warmup_steps=50 is more than half of the run: the rate climbs in the first 0 of 1"
        in text
    )
    assert outcome.has_learnt


def test_a_warm_up_that_fits_is_taken_as_it_is_and_not_spoken_of(place):
    assert "warmup" not in said(recipe(place))[1]
    settings = TrainSettings(warmup_steps=50)
    for step in range(100):  # half of the run is the longest
        expected = step / 50 if step < 50 else 1 - (step - 50) / 50
        assert rate_scale(step, 100, settings) == expected


def test_a_longer_warm_up_is_half_of_the_run():
    settings = TrainSettings(warmup_steps=50)
    five = [rate_scale(step, 5, settings) for step in range(5)]
    assert five == pytest.approx([0, 0.5, 1, 2 / 3, 1 / 3])
    assert [rate_scale(step, 2, settings) for step in range(2)] == [0, 1]
    assert [rate_scale(step, 1, settings) for step in range(1)] == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"train__learning_rate": 1e-300},
        pytest.param({"train__learning_rate": 1e-300, "strategy": "lora"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_moves_no_weight_says_so_and_ends_with_status_1(place, changes):
    chosen = recipe(place, **changes)
    save_recipe(chosen, place / "recipe.yaml")
    for _ in range(2):  # a finished run that is started again says it again
        done = CliRunner().invoke(app, ["train", str(place / "recipe.yaml")])
        assert done.exit_code == 1
        assert "no weight has moved in 6 steps" in done.output
    lines = (place / "run" / "incidents.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["no weight moved"]
    page = write_report(place / "run").read_text()
    assert "No weight has moved: this run has learnt nothing" in page


def test_steps_of_which_none_is_finite_move_no_weight(place):
    outcome = run(recipe(place, train__max_steps=2, train__learning_rate=1e30))
    assert outcome.has_learnt  # its first step was
    broken = recipe(place, "broken", train__max_steps=3, data__share_images=False)
    with torch.no_grad():
        model = make_model(place / "model").model
        model.get_submodule("model.vision_embed_tokens.img_projection.0").weight.mul_(1e38)
        model.save_pretrained(place / "model")
    assert not run(broken).has_learnt


TOWER = [{"match": "vision.*"}, {"match": "*", "learn": False}]


def words_and_images(place):
    make_image(place / "images" / "one.png", 5)
    rows = [[turn(f"Word {number}?", "yes")] for number in range(5)]
    rows.insert(3, [turn("What is it?", "A thing.", ["one.png"])])
    return str(write_data(place / "mixed.jsonl", rows))


@pytest.mark.parametrize("precision", daily("float32", beside=["fp16"]))
def test_a_row_of_words_alone_teaches_the_tower_nothing_and_is_counted(place, precision):
    alone = {"train__examples_per_step": 1, "train__epochs": 1, "data__order": "as_is"}
    chosen = recipe(
        place,
        data__train=words_and_images(place),
        strategy=TOWER,
        precision=precision,
        **alone,
    )
    outcome = run(chosen)
    assert len(losses(outcome.run)) == 6
    assert all(value > 0 for value in losses(outcome.run))
    assert outcome.has_learnt


def test_a_tower_alone_without_any_picture_is_refused_at_the_start(place):
    data = write_data(place / "words.jsonl", [[turn("Word?", "yes")]] * 4)
    with pytest.raises(RunError, match="no example has a picture: nothing would be learnt"):
        run(recipe(place, data__train=str(data), strategy=TOWER))


def test_a_finished_run_that_is_started_again_says_so_and_changes_nothing(place):
    outcome = run(recipe(place))
    before = weights(outcome.run)
    again, text = said(recipe(place))
    assert f"Finished: all 6 steps of {outcome.run} are taken" in text
    assert "loss" not in text
    assert again.report == outcome.report
    assert same_bits(before, weights(outcome.run))


def test_a_run_that_is_given_as_the_model_points_to_its_own(place):
    outcome = run(recipe(place, train__max_steps=1, strategy="lora"))
    for given in (outcome.run, outcome.run / "adapter"):
        with pytest.raises(ModelError) as error:
            run(recipe(place, "next", model=str(given)))
        assert f"is {outcome.run / 'final'}; give that" in str(error.value)
    run(recipe(place, "next", model=str(outcome.run / "final"), train__max_steps=1))
    (place / "begun").mkdir()
    (place / "begun" / "recipe.yaml").touch()
    with pytest.raises(ModelError, match="is a run that has not ended"):
        run(recipe(place, "next", model=str(place / "begun")))


def test_the_tiny_model_suits_the_data_of_the_start_that_counts(place):
    chosen = {"model": "phi3-vision-tiny", "train__max_steps": 1}
    TrainingRun(recipe(place, **chosen), Console(quiet=True))  # made, but never begun
    other = {"train__seed": 7, "data__train": words_and_images(place)}
    run(recipe(place, **chosen, **other))
    run(recipe(place, "whole", **chosen, **other))
    assert same_bits(weights(place / "run"), weights(place / "whole"))
    made = (place / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(RunError, match="belongs to another run"):
        run(recipe(place, **chosen))
    assert (place / "run" / "model" / "model.safetensors").stat().st_mtime_ns == made
