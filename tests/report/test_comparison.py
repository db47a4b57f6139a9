"""What the comparison of runs promises."""

import json
import re

import pytest
from run_folders import evaluate, make_examples, make_run, make_whole_run, predict

from foveal.errors import RunError
from foveal.report.report import write_comparison


def words(page):
    return page.read_text(encoding="utf-8")


def test_runs_are_set_against_the_first_answer_by_answer(tmp_path):
    first, second = make_whole_run(tmp_path, "first"), make_whole_run(tmp_path, "second")
    evaluate(second, "after", predict(wrong=[1, 3, 5, 7]))
    text = words(write_comparison([first, second], tmp_path / "page.html"))
    assert "91.7" in text
    assert "66.7" in text
    assert "\N{MINUS SIGN}25.0" in text  # three more of twelve are wrong
    assert "first, second" in text


def test_a_score_that_only_one_run_wrote_down_is_worked_out_for_the_other(tmp_path):
    first, second = make_whole_run(tmp_path, "first"), make_whole_run(tmp_path, "second")
    evaluate(second, "after", predict(wrong=[1, 3, 5, 7]))
    path = second / "evaluation" / "after" / "scores.json"
    path.write_text(json.dumps({"accuracy": json.loads(path.read_text())["accuracy"]}))
    text = words(write_comparison([first, second], tmp_path / "page.html"))
    row = text.partition('<th scope="row">ANLS</th>')[2].partition("</tr>")[0]
    assert re.findall(r'class="value[^"]*">([^<]*)<', row) == ["91.7", "66.7", "\N{MINUS SIGN}25.0"]


def test_only_settings_that_differ_are_listed(tmp_path):
    data = make_examples(tmp_path / "data")
    runs = [
        make_run(tmp_path / name, data, precision=precision)
        for name, precision in (("one", "bf16"), ("two", "fp16"))
    ]
    text = words(write_comparison(runs, tmp_path / "page.html"))
    assert "<code>precision</code>" in text
    assert "train.epochs" not in text
    assert "None of these runs has been evaluated yet." in text
    assert "None of these runs has finished a step." in text


def test_data_that_differ_under_one_name_are_told_apart(tmp_path):
    runs = [make_whole_run(tmp_path, name) for name in ("one", "two", "three")]
    for run, training in zip(runs[:2], ("a1" * 16, "b2" * 16), strict=True):
        facts = {"training": training, "validation": "c3" * 16}
        described = {role: {"fingerprint": mark, "examples": 12} for role, mark in facts.items()}
        (run / "data.json").write_text(json.dumps(described))
    text = words(write_comparison(runs, tmp_path / "page.html"))
    row = text.partition("<code>training data</code>")[2].partition("</tr>")[0]
    cells = ["12 examples, a1a1a1a1", "12 examples, b2b2b2b2", "not known"]
    assert all(f"<td>{cell}</td>" in row for cell in cells)
    assert "validation data" not in text
    runs = [runs[0], runs[2]]  # of one alone nothing is known to differ
    assert "training data" not in words(write_comparison(runs, tmp_path / "page.html"))


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [make_whole_run(tmp_path / place, "run") for place in ("a", "b")]
    text = words(write_comparison(runs, tmp_path / "page.html"))
    assert "a/run" in text
    assert "b/run" in text
    assert str(tmp_path) not in text.split("Settings")[0]  # and no more of it than that takes


def test_runs_that_answered_different_turns_have_no_difference(tmp_path):
    first, second = make_whole_run(tmp_path, "first"), make_whole_run(tmp_path, "second")
    path = second / "evaluation" / "after" / "predictions.jsonl"
    lines = map(json.loads, path.read_text().splitlines())
    lines = [line | {"id": f"other {line['id']}"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = words(write_comparison([first, second], tmp_path / "page.html"))
    assert "91.7" in text
    assert "p = " not in text


def test_names_are_escaped(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    runs = [make_whole_run(tmp_path, "plain"), make_whole_run(tmp_path, evil)]
    text = words(write_comparison(runs, tmp_path / "page.html"))
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_one_run_alone_is_nothing_to_compare(tmp_path):
    with pytest.raises(RunError, match="two runs or more"):
        write_comparison([tmp_path], tmp_path / "page.html")
