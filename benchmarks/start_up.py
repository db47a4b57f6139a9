"""How long `foveal train` takes from the command to its first step, with a tiny model.

    python benchmarks/start_up.py [--rounds 5] [--pages 60]

Each round is a fresh process with a fresh run folder. The first round warms the disk's cache and is
shown, not counted. The model and the pages (`draw_pages.py`) are made before.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from draw_pages import draw_pages

from foveal.config import DataSettings, Recipe
from foveal.inputs import make_tiny
from foveal.machine import machine_name


def seconds_to_first_step(model: Path, train_file: Path, run: Path, workers: int) -> float:
    """Start a training command; wait for its first line of metrics, then for its end.

    Raises:
        SystemExit: it failed.
    """
    data = f"data.train={train_file}", f"data.workers={workers}"
    settings = f"model={model}", f"run={run}", *data, "train.max_steps=2"
    command = "-m", "foveal.cli", "train", "recipes/demo.yaml", *settings
    started, lines = time.perf_counter(), run / "metrics.jsonl"
    with subprocess.Popen(
        (sys.executable, *command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (lines.exists() and lines.stat().st_size):
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pages", type=int, default=60)
    asked = parser.parse_args()
    print(machine_name())
    with TemporaryDirectory() as name:
        folder = Path(name)
        train_file = draw_pages(folder, asked.pages)
        recipe = Recipe(
            model="phi3-vision-tiny", run=folder / "run", data=DataSettings(train=train_file)
        )
        make_tiny(recipe, [train_file], folder / "model")
        for workers in (0, 1):
            taken = [
                seconds_to_first_step(
                    folder / "model", train_file, folder / f"run-{workers}-{turn}", workers
                )
                for turn in range(asked.rounds + 1)
            ]
            counted = taken[1:]
            print(
                f"{workers} workers: {median(counted):.1f} s ({min(counted):.1f} to "
                f"{max(counted):.1f}, {asked.rounds} rounds; the first of all {taken[0]:.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
