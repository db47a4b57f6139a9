"""Nothing -> bytes that this process holds, or held at most."""

import resource
import sys
from pathlib import Path


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
