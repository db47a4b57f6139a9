"""A run over boxes and clips: answers come back in the data's numbers, frames are frames."""

import json
import re
import shutil

import numpy as np
import pytest
from html_page import read_page
from numbered_clips import STEADY, write_clip
from PIL import Image
from rich.console import Console
from small_runs import losses, recipe, run, run_until, same_bits, weights
from tiny import make_image, turn, write_data, write_model
from tiny_models import write_tiny as write_family
from typer.testing import CliRunner

from foveal.cli import app
from foveal.data.images.boxes import BoxMap, box_edges
from foveal.data.images.clips import read_frames
from foveal.deliver.answerer import load_answerer
from foveal.deliver.open import open_model
from foveal.errors import DataError
from foveal.inputs import inspect_data
from foveal.run import TrainingRun


@pytest.fixture
def place(tmp_path):
    write_model(tmp_path / "model")
    lines = []
    for page in range(3):
        make_image(tmp_path / "images" / f"{page}.png", page, (60, 40))
        for number in range(2):
            left = 10 * page + 5 * number
            answer = f"[{left}, 10, {left + 20}, 30]"
            lines.append([turn(f"Where is {number}?", answer, [f"{page}.png"])])
    write_data(tmp_path / "train.jsonl", lines)
    return tmp_path


def boxed(place, name="run", **changes):
    settings = {
        "data__validation": str(place / "train.jsonl"),
        "data__boxes": "pixels",
        "evaluate__metrics": ["iou", "iou_above_half"],
        "evaluate__max_new_tokens": 24,
        "train__epochs": 30,
        "train__save_every_steps": 1000,
    }
    return recipe(place, name, **settings | changes)


def evaluate(model, data, out, *options):
    words = ["evaluate", str(model), str(data), "--out", str(out), "--metrics", "iou"]
    done = CliRunner().invoke(app, [*words, "--max-new-tokens", "24", *options])
    assert done.exit_code == 0, done.output


def test_a_run_learns_boxes_in_its_numbers_and_is_scored_in_those_of_the_data(place):
    outcome = run(boxed(place))
    folder = place / "run" / "evaluation" / "after"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    # Learnt by heart, so that the words themselves have to come back.
    right = [line for line in lines if line["prediction"] == line["answers"][0]]
    assert right
    assert all(line["scores"]["iou"] == 1 for line in right)
    assert outcome.after["iou"].value >= len(right) / len(lines)
    # What the model itself says is something else.
    loaded = open_model(str(place / "run"))
    assert loaded.processor.boxes == "pixels"
    boxes = BoxMap(loaded.processor.box_frame(60, 40), box_edges("pixels", (60, 40)))
    assert boxes.to_model(right[0]["prediction"]) != right[0]["prediction"]
    # The report draws both boxes where they are.
    page = read_page(place / "run" / "report.html")
    drawn = [
        found for kind, found in page.elements if kind == "rect" and "box" in found.get("class", "")
    ]
    assert {one["class"] for one in drawn} == {"box accepted", "box answered"}
    # So does `foveal evaluate`, of the run and of the bare model when it is told the unit.
    evaluate(place / "run", place / "train.jsonl", place / "again")
    again = (place / "again" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(one)["prediction"] for one in again] == [one["prediction"] for one in lines]
    # So does whoever asks the run, of files and of pictures.
    answerer, known = load_answerer(place / "run"), right[0]
    number = int(known["id"].removeprefix("example-"))
    page, question = place / "images" / f"{number // 2}.png", f"Where is {number % 2}?"
    for image in (page, Image.open(page)):
        assert answerer.answer(image, question) == known["prediction"]
    # An export is proven by the same scores, and its card says how it speaks.
    words = ["export", str(place / "run"), str(place / "out"), "--merge", "--dtype", "float32"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "speaks of boxes in pixels of the page" in (place / "out" / "README.md").read_text()
    proof = json.loads((place / "out" / "proof.json").read_text())
    assert proof["scores"]["iou"]["value"] == pytest.approx(outcome.after["iou"].value, abs=1e-6)
    bare_model = place / "run" / "final"
    evaluate(bare_model, place / "train.jsonl", place / "bare", "--boxes", "pixels")
    bare = (place / "bare" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(one)["prediction"] for one in bare] == [one["prediction"] for one in lines]


def test_inspect_draws_what_is_learnt_where_the_model_sees_it(place):
    chosen = boxed(place)
    page = inspect_data(chosen, place / "page.html", 1).read_text()
    # 60 x 40 in two crops of 28: 56 x 37 on a canvas of 56 x 56, 9 white rows above.
    (style,) = re.findall(r'<i class="box" style="([^"]*)"', page)
    numbers = [float(one) for one in re.findall(r"[\d.]+", style)]
    # Left 0, top 10, right 20, bottom 30, as the model's whole numbers on its canvas.
    left, top, right, bottom = 0, 9 + 37 * 10 / 40, 56 * 20 / 60, 9 + 37 * 30 / 40
    edges = [left, top, right, bottom]
    seen = [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
    assert np.abs(np.subtract(seen, np.divide(edges, 56) * 100)).max() < 100 * 0.51 / 56


@pytest.fixture
def films(tmp_path):
    """The same training data twice: clips, and their frames as pictures."""
    write_model(tmp_path / "model")
    (tmp_path / "images").mkdir()
    as_clips, as_frames = [], []
    for number in range(4):
        clip = tmp_path / "images" / f"{number}.avi"
        write_clip(clip, "mpeg4", STEADY[10 * number : 10 * number + 20], b_frames=0)
        names = []
        for place, frame in enumerate(read_frames(clip, 2)):
            names.append(f"{number}.{place}.png")
            frame.save(tmp_path / "images" / names[-1])
        for question in ("What moves?", "How?"):
            as_clips.append([turn(question, f"It {number}.", videos=[clip.name])])
            as_frames.append([turn(question, f"It {number}.", names)])
    write_data(tmp_path / "train.jsonl", as_clips)
    write_data(tmp_path / "frames.jsonl", as_frames)
    return tmp_path


def test_a_run_over_clips_is_the_run_over_their_frames_bit_for_bit(films, monkeypatch):
    clips = {"data__frames": 2, "data__workers": 2, "train__tokens_per_pass": 2000}
    clips["data__validation"] = str(films / "train.jsonl")
    frames = {"data__train": str(films / "frames.jsonl"), "train__tokens_per_pass": 2000}
    run(recipe(films, "of-clips", **clips))
    run(recipe(films, "of-frames", **frames))
    assert losses(films / "of-clips") == losses(films / "of-frames")
    assert same_bits(weights(films / "of-clips"), weights(films / "of-frames"))
    assert "0.avi" in (films / "of-clips" / "report.html").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("shown", ["images", "video"])
def test_a_run_over_clips_that_died_goes_on_to_the_same_bits(films, shown):
    settings = {"data__frames": 2, "data__clips": shown, "train__tokens_per_pass": 2000}
    settings |= {"train__max_steps": 3, "train__learning_rate": 1e-3}
    if shown == "video":
        shutil.rmtree(films / "model")
        write_family("qwen3_vl", films / "model")
        settings["data__num_crops"] = 16  # Phi's dial
    run(recipe(films, "whole", **settings))
    cut = recipe(films, "cut", **settings)
    run_until(TrainingRun(cut, Console(quiet=True)), 2)  # behind the checkpoint of step 2
    run(cut)
    assert losses(films / "cut") == losses(films / "whole")
    assert same_bits(weights(films / "cut"), weights(films / "whole"))


def test_a_clip_that_breaks_on_the_way_is_left_out_and_named(films):
    chosen = recipe(films, data__frames=2, data__max_bad_fraction=1, train__epochs=1)
    training = TrainingRun(chosen, Console(quiet=True))
    (films / "images" / "2.avi").write_bytes(b"RIFF")
    training.go()
    lines = (films / "run" / "incidents.jsonl").read_text().splitlines()
    named = [json.loads(line) for line in lines]
    assert {name for one in named for name in one["examples"]} == {"example-4", "example-5"}
    assert all("2.avi: broken clip" in one["reason"] for one in named)


def test_the_tiny_model_is_made_for_clips_alone(films):
    chosen = recipe(films, "tiny", data__frames=2, train__max_steps=1)
    outcome = run(chosen.model_copy(update={"model": "phi3-vision-tiny"}))
    assert outcome.steps == 1


def test_a_missing_clip_is_named_by_its_line_where_the_tiny_model_is_made_too(films):
    (films / "images" / "0.avi").unlink()
    chosen = recipe(films, "tiny", data__frames=2, train__max_steps=1)
    with pytest.raises(DataError, match=r"train\.jsonl:1 \(example-0\): image 0\.avi is not in"):
        run(chosen.model_copy(update={"model": "phi3-vision-tiny"}))
