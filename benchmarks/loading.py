"""How many pages a second one worker opens, beside how many an accelerator learns from.

    taskset -c 0 python benchmarks/loading.py [--pages 60]

Drawn letter pages of 1700 x 2200 pixels with four questions each, by the published processor (16
crops). The worker is the one that training uses, with nothing to wait for it; its start is not
counted. Accelerators are not at hand: what they take is `foveal plan`'s arithmetic, at the share of
their speed that the published table reached.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from draw_pages import PageStyle, draw_pages
from PIL import Image
from scale_on_paper import rows_of_rank

from foveal.config import LoraSettings
from foveal.data.dataset import read_dataset
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.rows import RowPlanner
from foveal.machine import Precision, machine_name
from foveal.models.phi3_vision.seam import FAMILY
from foveal.plan.hardware import find_hardware
from foveal.plan.model_costs.asked import AskedModel
from foveal.plan.question import published_model
from foveal.plan.seconds import rank_seconds
from foveal.plan.setup import Setup
from foveal.train.engines import EngineName

QUESTIONS, PAGES_A_STEP = 4, 4
NUM_CROPS = 16
LETTER = PageStyle(1700, 2200)
SETTINGS: tuple[tuple[str, EngineName], ...] = (
    ("full", "fsdp2"),
    ("frozen_vision", "fsdp2"),
    ("lora", "ddp"),
    ("qlora", "ddp"),
)
GPUS = ("v100-32gb", "a100-80gb", "h100", "b200")


def save_as_jpeg(pages: Path) -> Path:
    """Save the pictures of a JSONL file a second time; returns the file that names those."""
    text = pages.read_text(encoding="utf-8")
    for image in (pages.parent / "images").glob("*.png"):
        Image.open(image).save(image.with_suffix(".jpg"), quality=90)
    out = pages.with_name("jpeg.jsonl")
    out.write_text(text.replace(".png", ".jpg"), encoding="utf-8")
    return out


def pages_a_second(pages: Path) -> float:
    """Let one worker open all pages of a file."""
    _, processor = published_model(NUM_CROPS)
    _, dataset = read_dataset(pages, processor)
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=QUESTIONS * PAGES_A_STEP,
        tokens_per_pass=8192,
    )
    loader = StepLoader(plan, RowBatches(dataset, processor, "token"), workers=1)
    steps = loader.steps(0, plan.steps_per_epoch)
    opened = 0
    for one in steps:
        images = sum(len(batch.image_features) for batch in one.batches)
        if one.step:
            opened += images
        else:
            started = time.perf_counter()
    return opened / (time.perf_counter() - started)


def learnt_a_second(gpu: str, strategy: str, engine: EngineName) -> float:
    """Work out how many pages one of eight accelerators learns from in a second."""
    hardware = find_hardware(gpu)
    precision: Precision = "bf16" if "bf16" in hardware.matrix_flops else "fp16"
    config, processor = published_model(NUM_CROPS)
    setup = Setup(
        AskedModel(config, FAMILY, processor, strategy, LoraSettings(rank=64)),
        precision,
        "blocks",
        engine,
        "flex",
        gpus=8,
        nodes=1,
    )
    rows = rows_of_rank(QUESTIONS * PAGES_A_STEP)
    return PAGES_A_STEP / rank_seconds(setup, rows, hardware, workers=0).total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=60)
    asked = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        drawn = draw_pages(folder, asked.pages, style=LETTER, questions=(QUESTIONS, QUESTIONS))
        speeds = {"PNG": pages_a_second(drawn), "JPEG": pages_a_second(save_as_jpeg(drawn))}
    print(machine_name())
    for kind, speed in speeds.items():
        print(f"one worker, {kind}: {speed:.1f} pages/s")
    slowest = min(speeds.values())
    print("\n| pages/s of one GPU, and of one worker's time | " + " | ".join(GPUS) + " |")
    print("| --- " * (1 + len(GPUS)) + "|")
    for strategy, engine in SETTINGS:
        learnt = [learnt_a_second(gpu, strategy, engine) for gpu in GPUS]
        cells = (f"{each:.2f}, {100 * each / slowest:.0f} %" for each in learnt)
        print(f"| {strategy}, {engine} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
