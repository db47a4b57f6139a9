"""The script that times `foveal check` makes data without a problem."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "check_headers.py"


def test_the_timed_data_is_sound_and_has_as_many_lines_and_pictures_as_asked(tmp_path):
    spec = importlib.util.spec_from_file_location("check_headers", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.SCANS, script.A_FOLDER = 2, 4
    data = script.make_data(tmp_path, lines=30, pictures=10)
    checked = script.check(data, 30, 10, workers=1)  # fails where a line has a problem
    assert checked.seconds > 0
    assert len(data.read_text().splitlines()) == 30
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 10
