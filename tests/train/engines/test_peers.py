"""A process that dies takes the others of its run down, and they say which it was."""

import os
import signal
import time

import pytest
from forked import SERVER, fork_group
from launched import free_port

from foveal.train.engines import make_engine


def wait_together(ready, leave) -> None:
    make_engine("ddp", "float32")
    ready.release()
    leave.wait()


def start(folder, count: int):
    """Start processes by hand, as several machines would."""
    ready, leave = SERVER.Semaphore(0), SERVER.Event()
    processes = fork_group(count, free_port(), folder, wait_together, ready, leave)
    for _ in processes:
        assert ready.acquire(timeout=100)
    return processes, leave


@pytest.mark.parametrize(("count", "killed"), [pytest.param(3, 1, marks=pytest.mark.slow), (2, 0)])
def test_the_others_leave_within_seconds_and_name_the_dead(tmp_path, count, killed):
    processes, _ = start(tmp_path, count)
    dead = processes.pop(killed).process
    died = time.monotonic()
    os.kill(dead.pid, signal.SIGKILL)
    for one in processes:
        status, said = one.ended()
        assert status == 2
        assert said.startswith(f"foveal: process {killed} (pid {dead.pid} on ")
        assert "the same command goes on from the last checkpoint" in said
        assert len(said.splitlines()) == 1
    assert time.monotonic() - died < 60
    dead.join()


@pytest.mark.slow
def test_processes_that_end_in_peace_say_nothing(tmp_path):
    processes, leave = start(tmp_path, 2)
    leave.set()
    assert [one.ended() for one in processes] == [(0, ""), (0, "")]
