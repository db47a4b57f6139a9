"""A process that dies takes the others of its run down, and they say which it was."""

import os
import signal
import time
from unittest.mock import patch

import pytest
from forked import SERVER, fork_group
from launched import free_port

from foveal.train.engines import make_engine, peers


def wait_together(ready, leave) -> None:
    make_engine("ddp", "float32")
    ready.release()
    leave.wait()


def die_before_a_line_stands(dying: str, connected) -> None:
    """Begin as every process does, but for one that dies once it has heard where the first is."""
    accept, connect = peers.Companions._accept, peers.Companions._connect
    reach, rank = peers.socket.create_connection, os.environ["RANK"]

    def accept_when_the_others_have_connected(*told):
        assert connected.acquire(timeout=100)
        accept(*told)

    def connect_and_tell(*told):
        connect(*told)
        connected.release()

    def reach_the_dead(*where):
        while True:  # till nobody listens any more
            reach(*where).close()
            time.sleep(0.1)

    if rank == dying:
        step = "_accept" if rank == "0" else "_connect"
        patch.object(peers.Companions, step, lambda *_: os._exit(9)).start()
    elif rank == "0":
        patch.object(peers, "CONNECT_SECONDS", 0).start()
        patch.object(peers.Companions, "_accept", accept_when_the_others_have_connected).start()
    else:
        patch.object(peers.Companions, "_connect", connect_and_tell).start()
        if dying == "0":
            patch.object(peers.socket, "create_connection", reach_the_dead).start()
    make_engine("ddp", "float32")
    time.sleep(100)


def words_of_the_living(folder, count: int, dying: int) -> list[str]:
    told = die_before_a_line_stands, str(dying), SERVER.Semaphore(0)
    processes = fork_group(count, free_port(), folder, *told)
    for one in processes:
        one.process.join(timeout=100)
    ends = [one.process.exitcode for one in processes]
    for one in processes:
        one.process.kill()
    assert ends.pop(dying) == 9
    assert ends == [2] * (count - 1)
    return [one.said.read_text() for rank, one in enumerate(processes) if rank != dying]


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


def test_all_leave_where_one_died_before_it_was_connected_and_say_which(tmp_path):
    for said in words_of_the_living(tmp_path, 3, dying=2):
        assert said.startswith("foveal: process 2 did not connect in 0 seconds, so process ")
        assert "the same command goes on from the last checkpoint" in said
        assert len(said.splitlines()) == 1


def test_one_that_finds_the_first_process_dead_says_so_in_a_line(tmp_path):
    (said,) = words_of_the_living(tmp_path, 2, dying=0)
    assert said.startswith("foveal: process 0 (pid ")
    assert " cannot be reached at 127.0.0.1, port " in said
    assert len(said.splitlines()) == 1
