"""A case -> its optimizer step, timed, its peak, and the plan's estimate beside it."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import cast

import torch
from foveal_bench.contender import LORA, Case, Contender
from foveal_bench.random_page import LetterProcessor, find_size
from foveal_bench.timing import Timed, step_peak, time_step

from foveal.data.forward_inputs import GroupSpan
from foveal.models.phi3_vision.seam import FAMILY
from foveal.plan.estimate import estimate_rows
from foveal.plan.hardware import HARDWARE, Hardware
from foveal.plan.model_costs.asked import AskedModel
from foveal.plan.setup import Attention, Setup
from foveal.plan.this_machine import find_efficiency, measure_hardware

CAUSAL = "causal"
"""Attention of a row as if it were one example: what any rule of who sees whom is measured by."""

WARM_UP_STEPS = 2

CARDS = {
    "H100 80GB": "h100",
    "H200": "h200",
    "B200": "b200",
    "A100-SXM4-80GB": "a100-80gb",
    "A100-SXM4-40GB": "a100-40gb",
    "L40S": "l40s",
    "L4": "l4",
    "T4": "t4",
}
"""Part of a card's name -> its row of `foveal plan --gpu`."""


@dataclass(frozen=True)
class Trial:
    """A case, and what is tried on it beside."""

    case: Case
    compiled: bool = False
    """Whether the model's repeated layers go through `torch.compile`."""

    @property
    def name(self) -> str:
        """All that tells it from the others."""
        case = self.case
        words = [case.strategy, f"{case.questions} a page", case.way, case.attention]
        words += [case.optimizer] if case.optimizer != "adamw" else []
        return ", ".join(words + ["compiled"] * self.compiled)


@dataclass(frozen=True)
class Measured:
    """What a trial came to."""

    timed: Timed
    peak_bytes: int
    """Of a step, above what stands between steps."""

    first_seconds: float
    """Of the first step, with whatever is compiled or looked up once."""

    held_bytes: int
    """At most, of the whole process on its device, as its allocator and the driver see it."""

    planned_seconds: float
    planned_bytes: int


def make_side(trial: Trial, folder: Path) -> Contender:
    """Make a trial ready to take steps."""
    case = trial.case
    plain = case.attention == CAUSAL
    side = Contender(replace(case, attention="blocks") if plain else case, folder)
    if plain and side.rows:
        whole = [(GroupSpan(0, (), row.input_ids.shape[1]),) for row in side.rows]
        side.rows = [
            replace(row, groups=groups) for row, groups in zip(side.rows, whole, strict=True)
        ]
    if trial.compiled:
        for block in FAMILY.blocks(side.model):
            block.compile()
    return side


def measure(trial: Trial, steps: int, hardware: Hardware) -> Measured:
    """Take some steps."""
    with TemporaryDirectory() as folder:
        side = make_side(trial, Path(folder))
    on_cuda = side.engine.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    side.step()
    first = time.perf_counter() - started
    for _ in range(WARM_UP_STEPS):
        side.step()
    seconds = tuple(time_step(side) for _ in range(steps))
    peak = step_peak(side)
    held = _held() if on_cuda else 0
    planned_seconds, planned_bytes = planned(trial.case, side, hardware)
    if trial.compiled:
        torch._dynamo.reset()  # what it compiled holds on to the model
    timed = Timed(seconds, side.tokens, side.operations)
    return Measured(timed, peak, first, held, planned_seconds, planned_bytes)


def _held() -> int:
    """Most that tensors held, and what the process holds beside its allocator."""
    free, total = torch.cuda.mem_get_info()
    return int(torch.cuda.max_memory_allocated() + total - free - torch.cuda.memory_reserved())


def planned(case: Case, side: Contender, hardware: Hardware) -> tuple[float, int]:
    """Say what `foveal plan --gpu` says of one of our steps: seconds, and bytes of a process."""
    processor = LetterProcessor(find_size(case.size))
    setup = Setup(
        AskedModel(side.model.config, FAMILY, processor, case.strategy, LORA),
        case.precision,
        "blocks" if case.way == "recompute" else "none",
        "single",
        cast(Attention, "flash_attention_2" if case.attention == CAUSAL else case.attention),
        gpus=1,
        nodes=1,
    )
    known = replace(hardware, reached=find_efficiency(hardware))
    memory, seconds = estimate_rows(setup, side.counts, len(side.counts), known)
    return sum(one.total for one in seconds), memory.total_bytes


def this_card() -> Hardware:
    """Find the row of `foveal plan --gpu` that this card has; of others, measure it."""
    said = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = (row for part, row in CARDS.items() if part in said)
    name = next(known, None)
    return HARDWARE[name] if name else measure_hardware()


def middle(measured: Measured) -> float:
    """Seconds of a step, the median."""
    return median(measured.timed.seconds)
