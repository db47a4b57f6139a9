"""What the report page promises."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from html_page import read_page
from PIL import Image
from run_folders import evaluate, make_examples, make_run, measure, predict

from foveal.config import load_recipe, save_recipe
from foveal.data.example import Example, Turn, write_examples
from foveal.evaluate.prediction import Prediction
from foveal.report.report import write_report


def test_a_page_tells_scores_before_and_after_with_their_difference(page):
    assert "Accuracy after 91.7 %" in page.text
    assert "before 50.0 %" in page.text
    # 6 of 12 answers got better and one broke: +5 / 12.
    assert "+41.7" in page.text
    assert "over 12 answers" in page.text


def test_the_p_value_on_the_page_is_that_of_the_sign_test(page):
    # 7 answers changed, 6 for the better: 2 * (1 + 7) / 2^7 = 0.125.
    text = page.text
    found = float(text.partition("p = ")[2][:5])
    assert found == pytest.approx(0.125, abs=0.015)


def test_the_page_stands_in_the_run_folder_and_leaves_nothing_beside(whole, tmp_path):
    before = set(whole.iterdir())
    assert write_report(whole) == whole / "report.html"
    assert set(whole.iterdir()) - before == {whole / "report.html"}
    out = tmp_path / "elsewhere" / "page.html"
    assert write_report(whole, out=out) == out


def test_the_same_run_writes_the_same_page(whole, tmp_path):
    first = write_report(whole, out=tmp_path / "a.html").read_bytes()
    assert write_report(whole, out=tmp_path / "b.html").read_bytes() == first


def test_each_picture_is_embedded_once(page):
    text = page.source
    assert text.count("data:image/webp") == 11  # 12 turns over 11 pictures
    assert text.count("<use href=") == 12


@pytest.mark.slow
def test_500_predictions_over_large_pictures_stay_below_5_megabytes(tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(40):
        noise = generator.integers(0, 256, (300, 420, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.png")
    examples = [
        Example(
            id=f"example-{n}",
            conversations=(
                Turn(
                    images=tuple(f"{(n + k) % 40}.png" for k in range(3)),
                    user="Long question? " * 60,
                    assistant="yes",
                ),
            ),
        )
        for n in range(500)
    ]
    write_examples(folder / "data.jsonl", examples)
    run = make_run(tmp_path / "run", folder / "data.jsonl")
    measure(run, 3000)
    evaluate(run, "before", predict(wrong=range(100, 400), count=500))
    evaluate(run, "after", predict(wrong=range(50), count=500))
    assert write_report(run).stat().st_size <= 5_000_000


def test_improved_and_broken_answers_are_shown_with_both_predictions(page):
    text = page.text
    assert "Most improved Wrong before, right or closer now." in text
    broken = text.partition("Most broken")[2].partition("Random")[0]
    assert "Question 1? Accepted no Before no ✓ right After yes ✗ wrong example-1" in broken


def test_the_published_score_stands_beside_ours(whole):
    text = read_page(write_report(whole, published={"accuracy": 0.3})).text
    assert "Published" in text
    assert "30.0 below our interval" in text
    assert '<s style="left:30.00%">' in (whole / "report.html").read_text()
    assert "Published" not in read_page(write_report(whole)).text


def test_the_published_scores_of_the_recipe_stand_beside_ours_with_their_source(tmp_path):
    published = {"accuracy": 0.864, "auroc": 0.9, "source": "Some table <b>3</b>"}
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"), published=published)
    evaluate(run, "after", predict(wrong=[1]))
    text = read_page(write_report(run)).text
    assert "86.4 inside our interval" in text
    assert "Published: Some table <b>3</b>." in text
    assert "Published, but not measured here: AUROC 90.0 %" in text


def test_answers_that_were_chosen_are_told_from_written_ones(tmp_path):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    chosen = [replace(one, choice_scores={"yes": -1.0, "no": -2.0}) for one in predict()]
    evaluate(run, "after", [*chosen[:3], *predict()[3:]])
    evaluate(run, "before", chosen)
    page = read_page(write_report(run))
    assert "AUROC 50.0" in page.text
    assert "p = 1.000" in page.text.partition("AUROC")[2][:100]
    assert "3 of 12 answers were chosen as the likeliest of a closed set" in page.text
    assert "Calibration" in page.text


def test_closed_answers_are_counted_by_label(page):
    # Before, all 6 questions that are to be answered yes were answered no.
    assert "Before: rows are the truth, columns the answer. no yes right" in page.text
    assert "no 6 0 100.0 % yes 6 0 0.0 %" in page.text
    assert "no 5 1 83.3 % yes 0 6 100.0 %" in page.text


def test_many_labels_are_listed_by_their_commonest_confusions(tmp_path):
    labels = tuple(f"label {n}" for n in range(30))
    turns = [Turn(user="?", assistant=labels[n % 30], choices=labels) for n in range(60)]
    examples = [Example(id=str(n), conversations=(turn,)) for n, turn in enumerate(turns)]
    data = tmp_path / "data.jsonl"
    write_examples(data, examples)
    run = make_run(tmp_path / "run", data)
    answers = [turn.assistant if n % 30 else "label 7" for n, turn in enumerate(turns)]
    evaluate(
        run,
        "after",
        [Prediction(str(n), a, answers=turns[n].accepted) for n, a in enumerate(answers)],
    )
    text = read_page(write_report(run)).text
    assert "the commonest mistakes among 30 labels" in text
    assert "label 0 label 7 2" in text


def test_open_answers_have_no_matrix(tmp_path):
    run = make_run(tmp_path / "run", None)
    evaluate(run, "after", [Prediction(str(n), "x", answers=(str(n),)) for n in range(50)])
    assert "rows are the truth" not in read_page(write_report(run)).text


def test_sure_answers_get_a_calibration_curve(tmp_path):
    run = make_run(tmp_path / "run", None)
    answers = [
        Prediction(
            str(n),
            "yes",
            answers=("yes" if n % 2 else "no",),
            choice_scores={"yes": math.log(0.9), "no": math.log(0.1)},
        )
        for n in range(10)
    ]
    evaluate(run, "after", answers)
    text = read_page(write_report(run)).text
    # Sure to 90 %, right half the time.
    assert "After: off by 40.0 points on average." in text
    assert "90.0 % sure" in text


def test_scores_on_the_way_are_drawn(whole):
    assert "on the way" not in read_page(write_report(whole)).text
    evaluate(whole, "step-10", predict())
    assert "Best 100.0 % at step 10." in read_page(write_report(whole)).text


def test_curves_cost_and_settings_are_told(page):
    text = page.text
    for words in ("Loss", "Learning rate", "Gradient norm", "Throughput"):
        assert words in text
    assert "4 examples a second over the whole run, 500 tokens a second." in text
    assert "Time in steps 1 min" in text
    assert "Examples 240" in text
    assert "model phi3-vision-tiny" in text
    assert "train.epochs" not in text.partition("The whole recipe")[0]


def test_what_differs_from_the_recipe_below_stands_beside_its_value_there(tmp_path):
    base = {"file": "recipes/docvqa.yaml", "otherwise": {"precision": "fp16", "train.epochs": 3.0}}
    rules = [{"match": "vision.*", "learn": False}, {"match": "*"}]
    run = make_run(tmp_path / "run", None, base=base, strategy=rules, lora={"rank": 8})
    text = read_page(write_report(run)).text.partition("The whole recipe")[0]
    assert "differs from the recipe that it was built on, recipes/docvqa.yaml ." in text
    assert "docvqa.yaml This run train.epochs 3.0 1.0 precision fp16 bf16 Settings that" in text
    assert "lora.rank 8" in text
    assert "strategy [{match: vision.*, learn: false}, {match: '*'}]" in text


def test_what_differs_inside_a_setting_stands_beside_its_value_there_too(tmp_path):
    below = tmp_path / "below.yaml"
    below.write_text(
        "{model: m, run: r, data: {image_settings: {max_pixels: 9000}}, published: {anls: 0.8}}"
    )
    changes = "data.image_settings={min_pixels: 500}", "published.anls=0.9"
    run = make_run(tmp_path / "run", None)
    save_recipe(load_recipe(below, changes), run / "recipe.yaml")
    text = read_page(write_report(run)).text.partition("The whole recipe")[0]
    assert (
        "data.image_settings.min_pixels null 500 data.image_settings.max_pixels 9000 null" in text
    )
    assert "published.anls" not in text


def test_the_examples_are_told_as_they_were_when_the_run_began(whole):
    facts = {"fingerprint": "0123abcd", "examples": 3600, "pictures": 1200}
    (whole / "data.json").write_text(json.dumps({"training": facts}))
    text = read_page(write_report(whole)).text
    assert (
        "Training, when the run began 3,600 examples, 1,200 pictures, fingerprint 0123abcd" in text
    )


def test_the_fingerprint_of_the_data_is_its_sha256(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"")  # SHA-256 of nothing: e3b0c44298fc1c149afb...
    run = make_run(tmp_path / "run", data)
    measure(run, 2)
    assert "e3b0c44298fc" in read_page(write_report(run)).text


def test_incidents_are_listed_and_many_are_counted(whole):
    assert "None were recorded." in read_page(write_report(whole)).text
    lines = [json.dumps({"step": n, "kind": "skipped", "why": f"reason {n}"}) for n in range(70)]
    (whole / "incidents.jsonl").write_text("\n".join(lines) + "\n")
    text = read_page(write_report(whole)).text
    assert "70 in all; the first 50 are listed." in text
    assert "49 skipped reason 49" in text
    assert "reason 50" not in text


def test_the_memory_is_drawn_where_it_was_measured(tmp_path):
    run = make_run(tmp_path / "run", None)
    lines = [{"step": step, "loss": 1.0, "memory_bytes": 16e9 + step} for step in range(1, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = read_page(write_report(run)).text
    assert "Memory At most 16 GB; held by the first process behind each step." in text
    assert "Most memory of a process 16 GB" in text
    (run / "machine.json").write_text('{"device": "cuda"}')
    text = read_page(write_report(run)).text
    assert "At most 16 GB; that tensors held at once on the first GPU during each step." in text


def test_a_run_without_evaluation_says_so(tmp_path):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    measure(run)
    text = read_page(write_report(run)).text
    assert "No evaluation in this run yet" in text
    assert "Answers appear here once the run has been evaluated." in text


@pytest.mark.parametrize("text", [None, ""])
def test_a_run_without_steps_says_so(tmp_path, text):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    evaluate(run, "before", predict())
    if text is not None:
        (run / "metrics.jsonl").write_text(text)
    words = read_page(write_report(run)).text
    assert "No measures: metrics.jsonl is missing or empty" in words
    assert "There is one evaluation alone (before), so nothing can be compared." in words


def test_a_run_without_a_recipe_says_so(whole):
    (whole / "recipe.yaml").unlink()
    text = read_page(write_report(whole)).text
    assert "No recipe.yaml in the run folder" in text
    assert "questions and pictures are missing" in text
    assert "91.7" in text


def test_data_that_is_not_at_hand_is_named_and_can_be_given(whole, tmp_path):
    data = tmp_path / "data" / "data.jsonl"
    moved = data.rename(tmp_path / "moved.jsonl")
    page = read_page(write_report(whole))
    assert f"Questions and pictures are missing. {data}: No such file" in page.text
    assert not page.all("image")
    page = read_page(write_report(whole, data=moved, images=tmp_path / "data" / "images"))
    assert "Question 1?" in page.text
    assert len(page.all("image")) == 11


def test_pictures_that_are_not_at_hand_are_named(whole, tmp_path):
    (tmp_path / "data" / "images").rename(tmp_path / "gone")
    text = read_page(write_report(whole)).text
    assert "No picture: image 3.png is not in" in text
    assert "Question 3?" in text


def test_the_images_folder_of_the_recipe_is_used(tmp_path):
    data = make_examples(tmp_path / "data")
    images = (tmp_path / "data" / "images").rename(tmp_path / "pictures")
    run = make_run(tmp_path / "run", data, images)
    evaluate(run, "after", predict())
    assert read_page(write_report(run)).all("image")


def test_an_evaluation_without_answers_still_gives_a_page(tmp_path):
    run = make_run(tmp_path / "run", make_examples(tmp_path / "data"))
    evaluate(run, "before", [])
    evaluate(run, "after", [])
    text = read_page(write_report(run)).text
    assert "over 0 answers" in text
    assert "nan" not in text.replace(str(tmp_path), "").lower()


def test_a_long_answer_is_cut_and_an_empty_one_named(tmp_path):
    run = make_run(tmp_path / "run", None)
    evaluate(run, "after", [Prediction("a", "word " * 5000), Prediction("b", " ")])
    text = read_page(write_report(run)).text
    assert len(text) < 8000
    assert "word…" in text
    assert "empty" in text


def test_steps_with_a_broken_loss_are_counted(tmp_path):
    run = make_run(tmp_path / "run", None)
    lines = [
        {"step": n, "loss": math.nan if n == 2 else 1.0, "gradient_norm": None} for n in (1, 2, 3)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = read_page(write_report(run)).text
    assert "1 of 3 steps have no finite value." in text
    assert "Gradient norm" not in text
