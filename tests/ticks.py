"""Waits for the clock by which a disk dates changes: it ticks, and two within a tick look alike."""

from pathlib import Path


def next_tick(file: Path) -> None:
    """Wait until what changes a file next is dated later than what changed it last."""
    probe = file.with_name(f".{file.name}.probe")
    probe.touch()
    while probe.stat().st_ctime_ns <= file.stat().st_ctime_ns:
        probe.touch()
    probe.unlink()
