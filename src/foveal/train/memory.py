"""How much memory a step takes, of the process that writes the measures."""

import psutil
import torch


def forget_peak() -> None:
    """Begin to look for the most that tensors hold on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def step_memory_bytes() -> int:
    """Tell the most that tensors held on the GPU since then; on a CPU, what the process holds."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)
