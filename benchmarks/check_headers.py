"""How long `foveal check --headers-only` takes for many lines, and how much memory.

    python benchmarks/check_headers.py                     100,000 lines, each with its own picture
    python benchmarks/check_headers.py --lines 1000000 --pictures 250000 --workers 8

The pictures are links to a few different scans, each under a path of its own, so that they fit on
any disk: what is measured is opening and reading headers, not the disk. The command is run as a
user would, its start included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SCANS = 64
"""Different files behind all paths."""

A_FOLDER = 1000
"""Pictures in one folder."""


@dataclass(frozen=True)
class Checked:
    """What one check took."""

    lines: int
    pictures: int
    workers: int
    seconds: float
    largest_process_bytes: int

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.lines:,} lines, {self.pictures:,} pictures, {self.workers} processes: "
            f"{self.seconds:.1f} s, {self.lines / self.seconds:,.0f} lines a second, "
            f"largest process {self.largest_process_bytes / 2**20:.0f} MiB"
        )


def make_data(folder: Path, lines: int, pictures: int) -> Path:
    """Write a JSONL file of questions, spread evenly over pictures."""
    scans = folder / "scans"
    scans.mkdir()
    for number in range(SCANS):
        scan = Image.effect_noise((850, 1100), 20 + number % 40).convert("RGB")
        scan.save(scans / f"{number}.jpg", quality=60)
    names = list(_links(folder / "images", scans, pictures))
    data = folder / "data.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number in range(lines):
            image = names[number * pictures // lines]
            turn = {"images": [image], "user": f"What is number {number}?", "assistant": "It is 7."}
            file.write(json.dumps({"id": f"{number:010d}", "conversations": [turn]}) + "\n")
    return data


def _links(images: Path, scans: Path, pictures: int) -> Iterator[str]:
    for number in range(pictures):
        name = f"{number // A_FOLDER:04d}/{number:08d}.jpg"
        if number % A_FOLDER == 0:
            (images / name).parent.mkdir(parents=True)
        os.link(scans / f"{number % SCANS}.jpg", images / name)
        yield name


def check(data: Path, lines: int, pictures: int, workers: int) -> Checked:
    """Run the command and time it.

    Raises:
        CalledProcessError: it found a problem where there is none.
    """
    command = [sys.executable, "-m", "foveal.cli", "check", str(data), "--headers-only"]
    start = time.perf_counter()
    subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Checked(lines, pictures, workers, seconds, largest)


def main() -> None:
    """Make the data, check it, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, help="default: as many as lines")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    pictures = asked.pictures or asked.lines
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), asked.lines, pictures)
        print(check(data, asked.lines, pictures, asked.workers))


if __name__ == "__main__":
    main()
