"""What `benchmarks/export_full_size.py` measures, on a model that takes no time."""

import importlib.util
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    place = importlib.util.spec_from_file_location("full_size", SCRIPTS / "export_full_size.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["projector", "lora"])
def test_its_runs_are_exported_and_proven(script, place, tmp_path, strategy, capsys):
    data = script.make_examples(tmp_path / "examples")
    script.make_run(tmp_path / "run", place / "model", data, strategy, rank=2)
    done = script.export(tmp_path / "run", tmp_path / "out", proof=True)
    assert done.proof is not None
    assert done.proof.problems() == []
    assert done.proof.answers == 8
    told = capsys.readouterr().out
    for part in ("Writing", "Loading the run's own model", "Loading the written folder"):
        assert part in told
