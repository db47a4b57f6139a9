"""The same run started twice at once: one works, the other says so and touches nothing."""

import signal
import subprocess
import sys

import pytest
from held import HOLD, held
from rich.console import Console
from small_runs import losses, recipe, run, same_bits, weights

from foveal.beginning import LOCK
from foveal.errors import RunError
from foveal.run import TrainingRun


@pytest.fixture
def other(place):
    """Another process that is at work in the run's folder."""
    run(recipe(place, train__max_steps=2))
    with held(place / "run" / LOCK) as process:
        yield process


@pytest.mark.parametrize("fresh", [False, True])
def test_the_second_is_refused_in_one_line_and_changes_nothing(place, other, fresh):
    before = {file: file.read_bytes() for file in (place / "run").rglob("*") if file.is_file()}
    with pytest.raises(RunError, match=r"run=.+/run: another process is at work in it") as refused:
        TrainingRun(recipe(place, train__max_steps=2), Console(quiet=True), fresh)
    assert "\n" not in str(refused.value)
    assert {file: file.read_bytes() for file in before} == before
    assert not (place / "run.before-1").exists()


def test_one_that_died_holds_nothing(place, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert run(recipe(place, train__max_steps=2)).steps == 2


def test_a_run_holds_its_folder_until_it_ends(place):
    training = TrainingRun(recipe(place, train__max_steps=2), Console(quiet=True))
    tried = [sys.executable, "-c", HOLD.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB")]
    tried += [str(place / "run" / LOCK)]
    refused = subprocess.run(tried, capture_output=True, text=True, timeout=60, check=False)
    assert "BlockingIOError" in refused.stderr
    training.go()
    with subprocess.Popen(tried, stdout=subprocess.PIPE, text=True) as now:
        assert now.stdout.readline() == "held\n"
        now.kill()
    run(recipe(place, "alone", train__max_steps=2))
    assert losses(place / "run") == losses(place / "alone")
    assert same_bits(weights(place / "run"), weights(place / "alone"))
