"""What working in several processes promises: the same results in the same order, no orphans."""

import os
import signal
import subprocess
import sys
import time
from operator import neg
from pathlib import Path

import pytest

from foveal.data.parallel import in_new_process, parallel
from foveal.errors import DataError


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(parallel(neg, range(25), workers, chunk=4)) == [-item for item in range(25)]


def test_a_new_process_is_another_one():
    assert in_new_process(os.getpid) != os.getpid()


def test_a_worker_that_the_system_ends_is_spoken_of_in_one_line():
    with pytest.raises(DataError, match="a process beside this one was ended") as ended:
        in_new_process(os._exit, 9)
    assert "\n" not in str(ended.value)


SLEEPS = "import pathlib, time; pathlib.Path({told!r}).touch(); time.sleep(600)"
"""What a worker does, once it has told that it is at it."""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    parent, workers = _start(tmp_path)
    parent.kill()
    parent.communicate()
    _see_ended(workers)


def test_ctrl_c_in_a_terminal_is_heard_once_and_ends_all_processes_at_once(tmp_path):
    parent, workers = _start(tmp_path)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    assert parent.communicate(timeout=30) == ("stopped\n", "")
    _see_ended(workers)


def _see_ended(workers: list[int]) -> None:
    """See that processes end, which is a moment behind the one that they end with."""
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}/cwd").exists() for worker in workers):
        assert time.monotonic() < deadline, f"{workers} work on"
        time.sleep(0.05)


def _start(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """Start a program and wait for its worker, which has multiprocessing's own helper beside it."""
    told = folder / "told"
    script = (
        "from foveal.data.parallel import in_new_process\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        f"        in_new_process(exec, {SLEEPS.format(told=str(told))!r})\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not told.exists():
        assert time.monotonic() < deadline, "no worker was started"
        time.sleep(0.05)
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(listed) == 2
    return parent, [int(one) for one in listed]
