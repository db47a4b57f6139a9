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
import ctypes
from foveal.train.stop import stop_requests
mutex = ctypes.create_string_buffer(64)
with stop_requests():
    print("ready", flush=True)
    for _ in range(2):  # it waits for itself, and Python does nothing of its own any more
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
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
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()


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
