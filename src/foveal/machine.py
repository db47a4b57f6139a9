"""This machine: its devices, number formats and memory, and what a reader of numbers asks of it."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil
import torch

Precision = Literal["float32", "bf16", "fp16"]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT_BYTES = 32 * 2**20
"""Blocks above it go back to the kernel when they are free; glibc takes no larger threshold."""

LARGEST_KEPT_IF_SHORT_BYTES = 2**20
"""The same where memory is short: a step on a CPU takes a little longer, and holds what it uses."""


def pick_device() -> torch.device:
    """This process's accelerator, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    device = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(device.index)
    # Float32 means float32: of convolutions alone, cuDNN would round it to 10 bits by itself.
    torch.backends.cudnn.allow_tf32 = False
    return device


@contextmanager
def kernels_in_one_order(wanted: bool) -> Iterator[None]:
    """Have kernels add in one order, whatever runs beside them; one that cannot raises.

    Args:
        wanted: if not, nothing changes.
    """
    if not wanted:
        yield
        return
    # Read when cuBLAS is first used: its workspaces decide the order of a product's sums.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # handed on by transformers
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def free_memory(device: torch.device) -> int:
    """Bytes that a device still has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def keep_freed_memory(largest_bytes: int = LARGEST_KEPT_BYTES) -> None:
    """Let glibc keep blocks for the next step instead of handing them back to the kernel.

    Mapped anew for every tensor, they cost a page fault each 4 KB: a fifth of a step on a CPU. The
    larger ones are mapped all the same: between them the heap would be left full of holes, up to
    several times of what is in use.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, largest_bytes)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def forget_peak() -> None:
    """Begin to look for the most that tensors hold on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def step_memory_bytes() -> int:
    """Tell the most that tensors held on the GPU since then; on a CPU, what the process holds."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)


def machine_name() -> str:
    """Name the accelerator or the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def describe_machine() -> dict[str, str | int]:
    """What a reader of the numbers wants to know of the machine."""
    return {
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "foveal": version("foveal"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": str(torch.accelerator.current_accelerator() or "cpu"),
        "device_name": machine_name(),
        "devices": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": str(torch.get_num_threads()),
    }
