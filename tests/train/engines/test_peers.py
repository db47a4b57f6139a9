"""A process that dies takes the others of its run down, and they say which it was."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

WAITING = """
import sys, time
from foveal.train.engines.choose import make_engine
engine = make_engine("ddp", "float32")
print("ready", flush=True)
sys.stdin.readline()
"""


def start(count: int) -> list[subprocess.Popen]:
    """Start processes by hand, as several machines would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WAITING],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for one in processes:
        assert one.stdout.readline() == "ready\n", one.communicate()[1]
    return processes


@pytest.mark.parametrize(("count", "killed"), [pytest.param(3, 1, marks=pytest.mark.slow), (2, 0)])
def test_the_others_leave_within_seconds_and_name_the_dead(count, killed):
    processes = start(count)
    dead = processes.pop(killed)
    died = time.monotonic()
    dead.send_signal(signal.SIGKILL)
    for one in processes:
        assert one.wait(timeout=60) == 2
        _, said = one.communicate()
        assert said.startswith(f"foveal: process {killed} (pid {dead.pid} on ")
        assert "the same command goes on from the last checkpoint" in said
        assert len(said.splitlines()) == 1
    assert time.monotonic() - died < 60
    dead.communicate()


@pytest.mark.slow
def test_processes_that_end_in_peace_say_nothing():
    for one in reversed(start(2)):  # one after the other, the first one last
        said = one.communicate("\n", timeout=300)
        assert (one.returncode, *said) == (0, "", "")
