"""Questions about pages -> answers a second: evaluation beside `generate`, an endpoint's load."""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import evaluation
import serve_load
import torch

from foveal.machine import pick_device
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.plan.question import published_model
from on_gpu.record import Record, Values

PART = "answers"
CLIENTS = 16


def run(record: Record, size: str, rounds: int) -> None:
    """Measure evaluation, then an endpoint under `CLIENTS` clients."""
    record.take(PART, "evaluation, 4 a page", lambda: evaluated(size, rounds))
    record.take(PART, f"serve, {CLIENTS} clients", lambda: served(size))


def evaluated(size: str, rounds: int) -> Values:
    """Answer pages' questions three ways, in 16 bits on an accelerator, as `foveal serve` does."""
    dtype = torch.float32 if pick_device().type == "cpu" else torch.bfloat16
    found = evaluation.compare(size, pages=4, questions=4, new_tokens=8, rounds=rounds, dtype=dtype)
    ours = found["ours"]
    values: Values = {}
    for name, one in found.items():
        # The fastest: the first round is the one in which kernels are looked up.
        values[f"{name}_questions_per_second"] = len(one.tokens) / min(one.seconds)
        values[f"{name}_median_seconds"] = median(one.seconds)
        values[f"{name}_same_tokens"] = evaluation.same_tokens(one, ours) / len(one.tokens)
    values["ours_over_generate"] = min(found["generate"].seconds) / min(ours.seconds)
    return values


def served(size: str) -> Values:
    """Put a load on an endpoint; at the published size its model is first written to a folder."""
    with TemporaryDirectory() as folder:
        model, requests, side = None, 32, 96
        if size == "published":
            model, requests, side = write_published(Path(folder) / "model"), 64, 1344
        load = serve_load.run(
            model, requests, CLIENTS, pages=requests // 4, tokens=16, alone=requests // 8, side=side
        )
    if load.errors:
        raise RuntimeError(f"{len(load.errors)} requests failed, the first: {load.errors[0]}")
    return {
        "one_by_one_per_second": load.one_by_one_per_second,
        "together_per_second": load.together_per_second,
        "times_faster": load.times_faster,
        "median_seconds": load.median_seconds,
        "slowest_seconds": load.slowest_seconds,
    }


def write_published(folder: Path) -> str:
    """Write Phi-3.5-vision with random weights, made on this machine's device, in bf16."""
    config, processor = published_model(num_crops=16)
    with pick_device():
        model = Phi3VisionForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
