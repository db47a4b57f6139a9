"""What signals ask of a run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from foveal import run
from foveal.cli import main
from foveal.train.stop import stop_requests

BUSY = """
import sys, time, torch
from foveal.train.stop import stop_requests
large = torch.randn(2048, 2048, dtype=torch.float64)
with stop_requests():
    print("ready", flush=True)
    while True:
        torch.linalg.svd(large)  # many seconds in which Python does nothing of its own
"""


def test_the_first_signal_is_remembered_and_later_ones_do_not_change_it():
    with stop_requests() as request:
        assert request.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher sends it behind
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGINT


def test_signals_have_their_usual_effect_again_afterwards():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    with stop_requests():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once_also_in_the_middle_of_a_long_operation():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == 130
    process.stdout.close()


def test_ctrl_c_before_there_is_a_run_says_so_and_ends_with_130(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(f"model: none\nrun: {tmp_path}\n")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "TrainingRun", interrupted)
    monkeypatch.setattr(sys, "argv", ["foveal", "train", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    said = capsys.readouterr().err.splitlines()
    assert said == ["Stopped before the first step; the same command begins again."]
