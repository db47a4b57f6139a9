"""Whatever starts the processes, on however many nodes, and whichever of them is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from launched import ACCELERATE, Job, Place, free_port, launch, make_place

pytestmark = pytest.mark.slow
FOVEAL = ("-m", "foveal.cli", "train")

DIES_WHILE_IT_SAVES = """
import os, signal, sys
from pathlib import Path
from foveal.cli import main
from foveal.train import checkpoint

write, written = checkpoint._write_tensors, []

def write_half(path, values):
    write(path, values)
    written.append(path)
    if len(written) == 4:  # what the optimizer keeps, of the second checkpoint
        os.truncate(path, path.stat().st_size // 2)
        launcher = os.getppid()
        everyone = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        for process in sorted(map(int, everyone), key=os.getpid().__eq__):  # itself the last
            os.kill(process, signal.SIGKILL)

checkpoint._write_tensors = write_half
sys.argv = ["foveal", "train", sys.argv[1]]
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    made = make_place(tmp_path_factory.mktemp("launchers"))
    made.run_alone(made.recipe("one"))
    return made


def node(number: int, port: int, recipe: Path) -> list[str]:
    """Say how one of two nodes is started, with one process of its own."""
    nodes = ["--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "1"]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    launcher = [sys.executable, "-m", "torch.distributed.run", *nodes, *address]
    return [*launcher, *FOVEAL, str(recipe)]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2"])
def test_two_nodes_log_the_losses_of_one_process(place, engine):
    recipe, port = place.recipe(f"nodes-{engine}", engine=engine), free_port()
    nodes = [
        subprocess.Popen(node(number, port, recipe), stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    for one in nodes:
        _, said = one.communicate(timeout=300)
        assert one.returncode == 0, said
    losses = [[line["loss"] for line in place.metrics(run)] for run in ("one", recipe.stem)]
    assert len(losses[0]) == 10
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_accelerate_starts_the_same_command(place):
    recipe = place.recipe("accelerate")
    command = [sys.executable, "-m", *ACCELERATE, str(free_port()), *FOVEAL, str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    losses = [[line["loss"] for line in place.metrics(run)] for run in ("one", "accelerate")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2"])
def test_several_processes_of_which_one_is_killed_again_and_again_end_with_the_same_bits(
    place, engine
):
    often = {"train__epochs": 6, "train__save_every_steps": 3, "engine": engine}
    choose = random.Random(engine)
    for name, kills in ((f"whole-{engine}", 0), (f"killed-{engine}", 4)):
        recipe = place.recipe(name, **often)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--master-port", str(free_port()), *FOVEAL, str(recipe)]
        for _ in range(kills):
            kill_one(command, place.folder / name, choose)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    ours, theirs = place.weights(f"whole-{engine}"), place.weights(f"killed-{engine}")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    lines = [
        [{**line, "seconds": 0, "memory_bytes": 0} for line in place.metrics(f"{kind}-{engine}")]
        for kind in ("whole", "killed")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 30


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2"])
def test_all_processes_killed_while_they_save_go_on_from_the_checkpoint_before(place, engine):
    often = {"train__save_every_steps": 3, "engine": engine}
    recipes = [place.recipe(f"{name}-while-saving-{engine}", **often) for name in ("spared", "hit")]
    died = launch(place.folder, DIES_WHILE_IT_SAVES, str(recipes[1]))
    assert died.returncode != 0
    checkpoints = place.folder / recipes[1].stem / "checkpoints"
    assert sorted(one.name for one in checkpoints.iterdir()) == [".step-6.part", "step-3"]
    place.run_together([Job(str(recipe)) for recipe in recipes])
    spared, hit = (place.weights(recipe.stem) for recipe in recipes)
    assert all(torch.equal(weight, hit[name]) for name, weight in spared.items())
    losses = [[line["loss"] for line in place.metrics(recipe.stem)] for recipe in recipes]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10
    assert not list(checkpoints.glob(".step-*"))


def kill_one(command: list[str], run: Path, choose: random.Random) -> None:
    """Start a run and kill one of its processes at a random instant behind its first new step."""
    before = steps_of(run)
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while launcher.poll() is None and steps_of(run) == before:
        time.sleep(0.005)
    time.sleep(choose.uniform(0, 0.3))
    if launcher.poll() is None:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        with suppress(ProcessLookupError):  # that one has just come to its end
            for one in choose.sample(children, min(1, len(children))):
                os.kill(int(one), signal.SIGKILL)
    launcher.communicate(timeout=120)


def steps_of(run: Path) -> list[int]:
    """Read which steps a run has logged by now."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return [json.loads(line)["step"] for line in whole]
