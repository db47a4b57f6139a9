"""Two processes give what one gives, whatever rows each of them gets."""

import json
import socket
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from tiny import SIZES, make_picture, turn, write_data

from foveal.models.phi3_vision.tiny import write_tiny


def ragged_data(folder):
    """Pages with one to four questions, and examples without a picture among them."""
    conversations = []
    for page in range(6):
        make_picture(folder / "images" / f"{page}.png", page, (50 + 30 * (page % 2), 40))
        conversations += [
            [
                turn(
                    f"What is {number}?",
                    f"It is {page} {number}." * (1 + page % 3),
                    [f"{page}.png"],
                )
            ]
            for number in range(1 + page % 4)
        ]
        conversations.append([turn(f"Say {page}.", "word " * (1 + page))])
    return write_data(folder / "train.jsonl", conversations)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(folder, run, processes):
    tree = {
        "model": str(folder / "model"),
        "run": str(folder / run),
        "precision": "float32",
        "strategy": "full",
        "data": {"train": str(folder / "train.jsonl"), "workers": 0, "num_crops": 4},
        "train": {
            "epochs": 2,
            "examples_per_step": 4,
            "tokens_per_pass": 300,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
        },
    }
    (folder / f"{run}.yaml").write_text(yaml.safe_dump(tree))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launcher += ["--master-port", str(free_port())]
    command = [sys.executable, *(launcher if processes > 1 else [])]
    command += ["-m", "foveal.cli", "train", str(folder / f"{run}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = (folder / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def folder(tmp_path):
    write_tiny(tmp_path / "model", 0, SIZES)
    ragged_data(tmp_path)
    return tmp_path


def test_two_processes_log_the_losses_of_one(folder):
    one, two = train(folder, "one", 1), train(folder, "two", 2)
    assert len(one) == 10
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-5)
    for key in ("examples", "tokens", "step"):
        assert [line[key] for line in two] == [line[key] for line in one]
    ours = load_file(folder / "one" / "final" / "model.safetensors")
    theirs = load_file(folder / "two" / "final" / "model.safetensors")
    for name, weight in ours.items():
        if name.endswith("k_proj.bias"):  # moved by rounding alone
            continue
        assert float((weight - theirs[name]).norm() / (weight.norm() + 1e-9)) < 1e-4, name
