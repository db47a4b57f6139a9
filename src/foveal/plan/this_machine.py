"""The machine at hand -> what it can do, measured in seconds, and what this process holds of it."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import psutil
import torch
from PIL import Image

from foveal.libraries import import_peft
from foveal.machine import DTYPES, machine_name, pick_device
from foveal.models.phi3_vision.image import cut_crops
from foveal.plan.hardware import ASSUMED, ETHERNET, GB, PCIE4, Efficiency, Hardware
from foveal.plan.memory import CPU_SLACK
from foveal.storage import write_json

MATRIX_SIDE, MATRIX_REPEATS = 3072, 3
COPY_NUMBERS = 32_000_000
LARGER_SIDE, LARGER_COPY = 8192, 256_000_000
"""Of an accelerator, which does the smaller ones in less time than it takes to wait for them."""

SLOW = 2.0
"""Seconds of one product after which a format is not measured again: it is not computed with."""

ASSUMED_HERE = replace(
    ASSUMED,
    matrix=1.0,
    attention=0.5,
    bandwidth=0.8,
    pass_seconds=0.0,
    source="assumed, as shares of this processor's measured speed; --measure knows better",
    memory_slack=CPU_SLACK,
    moved=11.0,
)


def matrix_speed(dtype: torch.dtype = torch.float32, side: int | None = None) -> float:
    """Operations a second of a large matrix product, the best of several."""
    device = pick_device()
    side = side or (MATRIX_SIDE if device.type == "cpu" else LARGER_SIDE)
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    best = 0.0
    for _ in range(MATRIX_REPEATS):
        start = time.perf_counter()
        float((one @ other)[0, 0])  # waits for an accelerator
        taken = time.perf_counter() - start
        best = max(best, 2.0 * side**3 / taken)
        if taken > SLOW:
            break
    return best


def measure_hardware() -> Hardware:
    """Measure this machine in a few seconds."""
    device = pick_device()
    formats = {name: _format_speed(dtype) for name, dtype in DTYPES.items()}
    return Hardware(
        name=f"{machine_name()}, {torch.get_num_threads()} threads",
        memory_bytes=_memory_bytes(device),
        bandwidth_bytes_per_second=_copy_speed(device),
        matrix_flops=MappingProxyType(formats),
        link_bytes_per_second=PCIE4,
        node_link_bytes_per_second=ETHERNET * GB,
        source="measured here; links are assumed",
        base_bytes=_base_bytes(device),
        is_cpu=device.type == "cpu",
        measured=True,
        cores=os.cpu_count() or 1,
    )


def bring_in_libraries() -> None:
    """Let torch and peft bring in what they bring in at first use: some hundred megabytes."""
    import_peft()
    weight = torch.nn.Parameter(torch.ones(8, 8))
    optimizer = torch.optim.AdamW([weight], fused=True)
    (weight @ weight).sum().backward()
    optimizer.step()


def _format_speed(dtype: torch.dtype) -> float:
    # A processor without 16-bit products is slow at them: a small one tells.
    small = matrix_speed(dtype, MATRIX_SIDE // 8)
    if dtype != torch.float32 and torch.device("cpu") == pick_device():
        return small
    return matrix_speed(dtype)


def _copy_speed(device: torch.device) -> float:
    """Bytes a second that are read and written, the best of several."""
    numbers = COPY_NUMBERS if device.type == "cpu" else LARGER_COPY
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        float(target[0])  # waits for an accelerator

    return 2.0 * 4 * numbers / fastest(copy)


def fastest(action: Callable[[], object], repeats: int = MATRIX_REPEATS) -> float:
    """Time something; the fastest of several, seconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure_crop_seconds() -> float:
    """Time the cutting of a letter page on one core, a crop of it."""
    page = Image.fromarray(np.full((2200, 1700, 3), 200, np.uint8))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fastest(lambda: cut_crops(page, 16)) / 17
    finally:
        torch.set_num_threads(threads)


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().total)


def _base_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of the matrices whose speed was measured
    else:
        bring_in_libraries()
    return held_bytes(device)


def held_bytes(device: torch.device) -> int:
    """Say what is held of a GPU's memory, or by this process of its host's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return resident_bytes("VmRSS")


def resident_bytes(name: str) -> int:
    """Read what this process holds (VmRSS) or held at most (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():  # no Linux: the most it held, in both cases
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    line = next(
        line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024


def reset_most_resident() -> None:
    """Let the most that this process held be what it holds now, where the kernel can (Linux)."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text("5", encoding="utf-8")  # Documentation/filesystems/proc.rst


def constants_file(name: str, folder: Path | None = None) -> Path:
    """Name the file that holds what was measured on a machine."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return (folder or Path.home() / ".cache" / "foveal" / "machines") / f"{plain}.json"


def store_efficiency(name: str, efficiency: Efficiency, folder: Path | None = None) -> Path:
    """Keep what was measured on a machine."""
    path = constants_file(name, folder)
    write_json(path, vars(efficiency))
    return path


def find_efficiency(hardware: Hardware, folder: Path | None = None) -> Efficiency:
    """Take what was measured on a machine, else what is assumed."""
    path = constants_file(hardware.name, folder)
    if path.exists():
        return Efficiency(**json.loads(path.read_text(encoding="utf-8")))
    return ASSUMED_HERE if hardware.measured and hardware.is_cpu else ASSUMED
