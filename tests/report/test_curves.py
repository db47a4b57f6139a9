"""What the reader of metrics.jsonl promises."""

import math

import numpy as np
import pytest

from foveal.errors import DataError
from foveal.report.run_folder import read_measures, read_objects


def test_no_file_and_an_empty_one_hold_no_measures(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_measures(path) is None
    path.write_text("")
    assert read_measures(path) is None


def test_steps_done_again_after_a_resume_count_once_but_cost_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = [(1, 3.0), (2, 2.0), (3, 1.5), (2, 2.1), (3, 1.4)]
    path.write_text("".join(f'{{"step": {s}, "loss": {x}, "seconds": 10}}\n' for s, x in steps))
    found = read_measures(path)
    assert found.steps.tolist() == [1, 2, 3]
    assert found.columns["loss"].tolist() == [3.0, 2.1, 1.4]
    assert (found.seconds, found.repeated_steps) == (50, 2)


def test_a_value_that_is_missing_null_or_not_finite_is_not_a_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": null}\n{"step": 2, "loss": NaN}\n{"step": 3, "tokens": 5}\n'
    )
    found = read_measures(path)
    assert np.isnan(found.columns["loss"]).all()
    assert found.total("tokens") == 5
    assert found.total("images") == 0


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert read_measures(path).steps.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1}\nrubbish\n{"step": 2}\n', "metrics.jsonl:2: not JSON"),
        ("[1]\n", "metrics.jsonl:1: not a JSON object"),
    ],
)
def test_any_other_broken_line_is_an_error_that_names_it(tmp_path, text, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_objects(path)


def test_a_measure_without_a_step_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"loss": 1}\n')
    with pytest.raises(DataError, match="measure 2 names no step"):
        read_measures(path)


def test_total_passes_over_gaps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "images": 3}\n{"step": 2}\n{"step": 3, "images": 4}\n')
    found = read_measures(path)
    assert found.total("images") == 7
    assert math.isnan(found.columns["images"][1])
