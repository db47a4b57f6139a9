"""`foveal evaluate` on a run, by several processes, and on answers made elsewhere."""

import json
import subprocess
import sys

import pytest
from held import held
from tiny import SIZES, make_image, turn, write_data
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import DataSettings, Recipe, save_recipe
from foveal.errors import ConfigError
from foveal.evaluate.prediction import read_predictions, read_scores
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.storage import AtWorkError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run that has ended, and questions with labels to choose from."""
    place = tmp_path_factory.mktemp("place")
    conversations = []
    for page in range(3):
        make_image(place / "images" / f"{page}.png", page, (90, 40))
        for number in range(2):
            asked = f"Is number {number} on the page?"
            labels = ["yes", "no"]
            image = f"{page}.png"
            conversations.append([turn(asked, labels[number], [image], choices=labels)])
    data = write_data(place / "data.jsonl", conversations)
    run = place / "run"
    run.mkdir()
    write_tiny(run / "final", 0, SIZES)
    files = DataSettings(train=data, num_crops=1)
    save_recipe(Recipe(model="phi3-vision-tiny", run=run, data=files), run / "recipe.yaml")
    return place


def foveal(*arguments):
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_a_finished_run_is_evaluated_by_its_folder_and_cut_as_its_recipe_says(place):
    said = foveal(place / "run", place / "data.jsonl")
    folder = place / "run" / "evaluation" / "data"
    assert f"written: {folder}" in said
    assert "auroc: " in said
    found = read_predictions(folder / "predictions.jsonl")
    assert len(found) == 6
    wider = place / "wider"
    foveal(place / "run", place / "data.jsonl", "--num-crops", 4, "--out", wider)
    other = read_predictions(wider / "predictions.jsonl")
    assert [one.choice_scores for one in found] != [one.choice_scores for one in other]


def test_a_folder_that_another_evaluation_writes_to_is_left_to_it(place, tmp_path):
    command = ["evaluate", str(place / "run"), str(place / "data.jsonl"), "--out", str(tmp_path)]
    with held(tmp_path / ".lock"):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, AtWorkError)
        assert done.exception.filename == str(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(place, tmp_path):
    foveal(place / "run", place / "data.jsonl", "--out", tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += ["-m", "foveal.cli", "evaluate", place / "run", place / "data.jsonl"]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy: ") == 1  # one of them speaks
    one = read_predictions(tmp_path / "one" / "predictions.jsonl")
    two = read_predictions(tmp_path / "two" / "predictions.jsonl")
    assert [(each.key, each.prediction) for each in one] == [
        (each.key, each.prediction) for each in two
    ]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "evaluation.json",
        "predictions.jsonl",
        "scores.json",
    ]


def test_answers_made_elsewhere_need_the_data_alone(place, tmp_path):
    lines = [{"id": f"example-{number}", "prediction": "Yes."} for number in range(6)]
    path = tmp_path / "elsewhere.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = foveal("--predictions", path, place / "data.jsonl", "--metrics", "accuracy,token_f1")
    assert "accuracy: 0.500" in said
    scores = read_scores(tmp_path / "scores.json")
    assert {name: score.value for name, score in scores.items()} == {
        "accuracy": 0.5,
        "token_f1": 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data.jsonl"], "1 arguments; give RUN_OR_MODEL and DATA"),
        (["--predictions", "p.jsonl", "run", "data.jsonl"], "2 arguments; give DATA"),
    ],
)
def test_wrong_arguments_are_told_what_is_wanted(arguments, said):
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(app, ["evaluate", *arguments], catch_exceptions=False)
