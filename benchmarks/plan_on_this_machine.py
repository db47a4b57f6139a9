"""Set estimates beside measurements on this machine, for three sizes and every strategy.

    python benchmarks/plan_on_this_machine.py [--sizes small,middle,large] [--strategies full,lora]

Estimates are those of a machine that nobody has measured with `--measure`. Run it on one with
nothing else to do. Virtual machines are slower at some times than at others, so the machine's speed
is measured before and behind each case, and the estimate is made with the better of the two, as
rows are timed by their fastest turn.
"""

import argparse
import platform
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import MappingProxyType

import numpy as np
from PIL import Image

from foveal.config import DataSettings, Recipe, TrainSettings
from foveal.data.example import Example, Turn, write_examples
from foveal.inputs import load_in_passing
from foveal.models.phi3_vision.tiny import TinySizes, write_tiny
from foveal.plan.estimate import Machines, decide, estimate_rows
from foveal.plan.hardware import Hardware
from foveal.plan.measure import measure
from foveal.plan.question import ask
from foveal.plan.this_machine import ASSUMED_HERE, measure_hardware

WIDE = TinySizes(crop_size=168, patch_size=14, tower_width=256, tower_layers=5, tower_heads=4)
SIZES = {
    "small": replace(WIDE, width=512, layers=4, heads=8, mlp=1365),
    "middle": replace(WIDE, width=768, layers=6, heads=8, mlp=2048),
    "large": replace(WIDE, width=1152, layers=8, heads=12, mlp=3072, tower_width=320),
}
STRATEGIES = ("full", "frozen_vision", "lora", "qlora")
PAGES, QUESTIONS = 12, 4


def write_pages(folder: Path) -> Path:
    """Write pages of noise in several shapes, and questions about each."""
    (folder / "images").mkdir(parents=True)
    examples = []
    random = np.random.default_rng(0)
    for page in range(PAGES):
        size = ((850, 1100), (640, 480), (1100, 850))[page % 3]
        noise = random.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).resize(size).save(folder / "images" / f"{page}.png")
        for number in range(QUESTIONS):
            question = f"What is written in line {number} of page {page}, and by whom?"
            turn = Turn(images=(f"{page}.png",), user=question, assistant=f"line {number}")
            examples.append(Example(id=f"{page}-{number}", conversations=(turn,)))
    write_examples(folder / "data.jsonl", examples)
    return folder / "data.jsonl"


def best_of(before: Hardware, after: Hardware) -> Hardware:
    """Take the better of what a machine could do before and after something."""
    speeds = {name: max(one, after.matrix_flops[name]) for name, one in before.matrix_flops.items()}
    moved = max(before.bandwidth_bytes_per_second, after.bandwidth_bytes_per_second)
    return replace(before, matrix_flops=MappingProxyType(speeds), bandwidth_bytes_per_second=moved)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {measure_hardware().name}")
    print("| strategy | size | GB | estimated | error | s of rows | estimated | error | GFLOP/s |")
    print("| --- " * 9 + "|", flush=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = write_pages(folder / "data")
        for strategy in arguments.strategies.split(","):
            for size in arguments.sizes.split(","):
                model = folder / size
                if not model.exists():
                    write_tiny(model, 0, SIZES[size])
                recipe = Recipe(
                    model=str(model),
                    run=folder / "run",
                    strategy=strategy,
                    precision="float32",
                    data=DataSettings(train=data, num_crops=16),
                    train=TrainSettings(examples_per_step=24, tokens_per_pass=2048),
                )
                question = ask(recipe, load_in_passing)
                before = replace(measure_hardware(), reached=ASSUMED_HERE)
                setup = decide(question, Machines(before, 1, 1)).setup
                found = measure(question, setup, before, load_in_passing)
                hardware = best_of(before, measure_hardware())
                _, seconds = estimate_rows(setup, found.rows, 1, hardware)
                taken = found.measured.step_seconds
                errors = [
                    one.total / measured - 1 for one, measured in zip(seconds, taken, strict=True)
                ]
                peak, total = found.measured.peak_bytes, found.memory.total_bytes
                print(
                    f"| {strategy} | {size} | {peak / 1e9:.2f} | "
                    f"{total / 1e9:.2f} | {total / peak - 1:+.0%} | "
                    f"{', '.join(f'{one:.2f}' for one in taken)} | "
                    f"{', '.join(f'{one.total:.2f}' for one in seconds)} | "
                    f"{median(errors):+.0%} | {hardware.matrix_flops['float32'] / 1e9:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
