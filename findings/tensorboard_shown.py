"""Event files as torch writes them at a given time, and what TensorBoard shows of them."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter


def write(folder, value, steps, purge_step, at):
    """Write `value` as the loss of `steps`, on a machine whose clock says `at`."""
    event_file_writer.time = SimpleNamespace(time=lambda: at)
    with SummaryWriter(folder, purge_step=purge_step) as writer:
        for step in steps:
            writer.add_scalar("loss", value, step)


def shown(folder, *options):
    """Give (step, value) as the browser gets them for the one run under `folder`."""
    asked = ["--logdir", folder, "--port", "0", *options]
    command = [sys.executable, "-m", "tensorboard.main", *asked]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            told = (re.search(r"(http://\S+/) ", line) for line in server.stderr)
            address = next(found[1] for found in told if found)
            points = settled(f"{address}data/plugin/scalars/scalars?run=run&tag=loss")
            return [(step, value) for _, step, value in points]
        finally:
            server.terminate()


def settled(address):
    """Ask until one answer comes four times in a row: files are read in the background."""
    answers = []
    for _ in range(240):
        try:
            with urllib.request.urlopen(address) as answer:
                answers.append(json.load(answer))
        except urllib.error.HTTPError:
            answers.append([])
        if answers[-1] and answers[-4:] == [answers[-1]] * 4:
            return answers[-1]
        time.sleep(0.5)
    raise TimeoutError(address)
