"""This machine -> what a run must know of it, and what a reader of its numbers wants to know."""

import os
import platform
import sys
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that a device still has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 8 * 2**30


def describe_machine() -> dict[str, str | int]:
    """What a reader of the numbers wants to know of the machine."""
    import transformers

    import foveal

    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "foveal": foveal.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(torch.accelerator.current_accelerator() or "cpu"),
        "device_name": name,
        "devices": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": str(torch.get_num_threads()),
    }
