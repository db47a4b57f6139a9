"""One step under torch's profiler -> the costliest kernels, and the time in which none runs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foveal_bench.contender import Case
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from foveal.machine import Precision
from on_gpu.record import Record, Values
from on_gpu.steps import Trial, make_side

PART = "kernels"
SHOWN = 10
NAME_LETTERS = 120


@dataclass(frozen=True)
class Span:
    """A kernel at work; on a processor, an operator that calls no other."""

    name: str
    start: float
    """Microseconds."""

    end: float


def run(record: Record, size: str, precision: Precision) -> None:
    """Profile a step of each strategy, one question a page."""
    for strategy, way in (("full", "recompute"), ("lora", "shared")):
        case = Case(size, strategy, 1, way, precision, attention="blocks")  # type: ignore[arg-type]
        work = partial(profiled, Trial(case))
        record.take(PART, f"{strategy}, 1 a page, {way}", work)


def profiled(trial: Trial) -> Values:
    """Take a step of a trial under the profiler, behind two to warm up."""
    with TemporaryDirectory() as folder:
        side = make_side(trial, Path(folder))
    on_cuda = side.engine.device.type == "cuda"
    for _ in range(2):
        side.step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as seen:
        side.step()
    return summary(spans_of(seen.events(), on_cuda))


def spans_of(events: Iterable[Any], on_cuda: bool) -> list[Span]:
    """Take from a profile what kept the device busy."""
    device = DeviceType.CUDA if on_cuda else DeviceType.CPU
    return [
        Span(one.name, one.time_range.start, one.time_range.end)
        for one in events
        if one.device_type == device and not (one.cpu_children or one.is_user_annotation)
    ]


def summary(spans: list[Span]) -> Values:
    """Say where the time from the first span's start to the last one's end went."""
    whole = max(one.end for one in spans) - min(one.start for one in spans)
    busy = busy_time(spans)
    taken: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for one in spans:
        taken[one.name] += one.end - one.start  # type: ignore[assignment]
        calls[one.name] += 1
    costliest = [
        {
            "name": name[:NAME_LETTERS],
            "milliseconds": time / 1e3,
            "calls": calls[name],
            "share": time / whole,
        }
        for name, time in taken.most_common(SHOWN)
    ]
    return {
        "milliseconds": whole / 1e3,
        "between_milliseconds": (whole - busy) / 1e3,
        "between_share": 1 - busy / whole,
        "spans": len(spans),
        "costliest": costliest,
    }


def busy_time(spans: Iterable[Span]) -> float:
    """Add up the time in which at least one span runs."""
    busy, reached = 0.0, float("-inf")
    for one in sorted(spans, key=lambda span: span.start):
        busy += max(0.0, one.end - max(one.start, reached))
        reached = max(reached, one.end)
    return busy
