"""A run that is killed at any instant ends as one that was left alone."""

import json
from pathlib import Path

import kill_storm
import pytest
from forked import fork
from safetensors.torch import load_file

MEASURED = ("seconds", "memory_bytes")
"""Of the machine at that hour, not of the run."""


def lines(run: Path, name: str) -> list[dict]:
    read = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in read]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_many_instants_ends_with_the_bits_of_one_left_alone(tmp_path, kills):
    words = ["--kills", str(kills), "--out", str(tmp_path)]
    status, said = fork(kill_storm.main, words, said=tmp_path / "said.txt").ended()
    assert status == 0, said
    assert f"{kills} kills" in said
    whole, killed = tmp_path / "whole", sorted(tmp_path.glob("killed-*"))
    assert killed
    for run in killed:
        for place in (
            "final/model",
            "checkpoints/step-12/weights",
            "checkpoints/step-12/optimizer",
        ):
            ours, theirs = (load_file(one / f"{place}.safetensors") for one in (run, whole))
            assert ours.keys() == theirs.keys()
            assert all(ours[name].equal(theirs[name]) for name in ours)
        assert [line["step"] for line in lines(run, "metrics.jsonl")] == list(range(1, 13))
        for name in ("metrics.jsonl", "incidents.jsonl"):  # a picture is broken: there are some
            assert lines(run, name) == lines(whole, name) != []
