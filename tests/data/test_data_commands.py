"""What `foveal check` and `foveal convert` say, as a person reads it."""

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from layouts import image_bytes, lines_of, put_image, put_json
from pyarrow import parquet
from tiny import make_image, turn, write_data
from typer.testing import CliRunner

from foveal.cli import app
from foveal.errors import UserError


def run(*arguments: object) -> tuple[int, list[str]]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if isinstance(done.exception, UserError):  # which the entry turns into one line
        return 2, [str(done.exception)]
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output.splitlines()


def put_rows(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    images = [{"bytes": image_bytes(shade), "path": None} for shade in range(count)]
    parquet.write_table(pyarrow.table({"image": images, **columns}), path)
    return path


def test_parquet_is_checked_as_a_run_would_read_it(tmp_path):
    path = put_rows(tmp_path / "x.parquet", question=["?", "[INST]?"], answer=["a", "b"])
    code, said = run("check", path)
    assert code == 1
    assert f"{path}:2: turn 1: user holds [INST], which another tool reads" in said[0]
    assert "2 examples, 2 pictures, problems: 1" in said


def test_columns_are_named_to_check_and_to_convert(tmp_path):
    path = put_rows(tmp_path / "set" / "x.parquet", ask=["first?"], reply=["a"])
    code, said = run("check", path)
    assert (code, len(said)) == (2, 1)
    assert "no column of the question" in said[0]
    assert "among image, ask, reply; name it: --columns question=NAME, of a run" in said[0]
    named = ("--columns", "question=ask, answer=reply")
    assert run("check", path, *named)[0] == 0
    assert run("convert", "table", tmp_path / "set", tmp_path / "out", *named)[0] == 0
    (line,) = lines_of(tmp_path / "out" / "table_train.jsonl")
    assert line["conversations"][0]["user"] == "first?"


@pytest.mark.parametrize("columns", ["ask", "asked=question", "question=", "question"])
def test_columns_written_otherwise_are_refused(tmp_path, columns):
    path = put_rows(tmp_path / "x.parquet", ask=["?"], reply=["a"])
    code, (said,) = run("check", path, "--columns", columns)
    assert code == 2
    assert "a column holds images, question, answer" in said


def test_a_recipes_columns_and_turns_hold_for_check_too(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    settings = {"columns": {"question": "ask", "answer": "reply"}, "turns": "template"}
    tree = {"model": "phi3-vision-tiny", "run": str(tmp_path / "run"), "data": settings}
    recipe.write_text(json.dumps(tree))
    path = put_rows(tmp_path / "x.parquet", ask=["?"], reply=["a"])
    code, said = run("check", path, "--recipe", recipe)
    assert code == 0
    assert "1 examples, 1 pictures, problems: 0" in said
    make_image(tmp_path / "images" / "a.png", 0)
    several = [[turn("?", "!", ["a.png"]), turn("?", "!")]]
    data = write_data(tmp_path / "d.jsonl", several)
    by_the_template = run("check", data, "--recipe", recipe)[1]
    assert not any("several turns" in line for line in by_the_template)
    assert (
        "examples of several turns: 1; between two, training writes <|end|>"
        in run("check", data)[1][0]
    )


def test_a_folder_of_several_splits_is_asked_about(tmp_path):
    for name in ("train-0.parquet", "test-0.parquet"):
        put_rows(tmp_path / "set" / name, question=["?"], answer=["a"])
    code, (said,) = run("check", tmp_path / "set")
    assert code == 2
    assert f"give one of them: {tmp_path / 'set'}:test or {tmp_path / 'set'}:train" in said
    assert run("check", f"{tmp_path / 'set'}:train")[0] == 0


def test_a_warning_is_printed_and_is_no_problem(tmp_path):
    put_image(tmp_path / "images" / "a.png")
    data = write_data(tmp_path / "d.jsonl", [[turn("?", "!", ["a.png"])]])
    code, said = run("check", data)
    assert code == 0
    assert said[0] == (
        f"{data}:1: warning: image a.png shows one colour (an alpha channel is dropped)"
    )


def test_the_good_lines_of_a_table_are_not_written_before_it_is_one_of_lines(tmp_path):
    path = put_rows(tmp_path / "x.parquet", question=["?"], answer=["a"])
    code, (said,) = run("check", path, "--fix", tmp_path / "good.jsonl")
    assert code == 2
    assert "foveal convert table" in said


def test_the_command_that_is_named_for_a_file_reads_it(tmp_path):
    place = tmp_path / "my pages"
    put_image(place / "a.png")
    row = {"image": "a.png", "question": "?", "answer": "x"}
    chat = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}]
    for value in (row, {"image": "a.png", "conversations": chat}):
        path = put_json(place / "d.json", [value])
        code, said = run("check", path)
        words = shlex.split(said[0].partition("; foveal ")[2])
        out = tmp_path / f"out-{words[1]}"
        assert (code, words[0]) == (1, "convert")
        assert run(*words[:3], out)[0] == 0
        assert len(list(out.glob("*.jsonl"))) == 1


@pytest.mark.parametrize("written", ["yes, no", " yes ,no,", "yes,no,yes"])
def test_choices_on_the_command_line_are_trimmed_and_it_is_told(tmp_path, written):
    done = CliRunner().invoke(
        app, ["evaluate", "nowhere", str(tmp_path / "no.jsonl"), "--choices", written]
    )
    assert "choices, without what stands around them: ('yes', 'no')" in done.output
