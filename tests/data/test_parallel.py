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


def test_a_worker_ends_when_its_parent_is_killed():
    script = (
        "import time\n"
        "from foveal.data.parallel import in_new_process\n"
        "if __name__ == '__main__':\n"
        "    in_new_process(time.sleep, 600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    workers = _children(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}/cwd").exists() for worker in workers):
        assert time.monotonic() < deadline, f"{workers} work on"
        time.sleep(0.1)


def test_ctrl_c_in_a_terminal_is_heard_once_and_ends_all_processes_at_once():
    script = (
        "import time\n"
        "from foveal.data.parallel import in_new_process\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        in_new_process(time.sleep, 600)\n"
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
    workers = _children(parent.pid)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    assert parent.communicate(timeout=30) == ("stopped\n", "")
    assert not any(Path(f"/proc/{worker}/cwd").exists() for worker in workers)


def _children(parent: int) -> list[int]:
    """Wait for the worker that sleeps, beside multiprocessing's own helper."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if len(listed) == 2:
            time.sleep(2)  # until it is in the function
            return [int(one) for one in listed]
        time.sleep(0.1)
    raise AssertionError("no worker was started")
