"""What glibc does with freed memory: keep it for the next step, or hand it back."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT_BYTES = 32 * 2**20
"""Blocks above it go back to the kernel when they are free; glibc takes no larger threshold."""

LARGEST_KEPT_IF_SHORT_BYTES = 2**20
"""The same where memory is short: a step on a CPU takes a little longer, and holds what it uses."""


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


def hand_back_free_memory() -> None:
    """Give the kernel what glibc kept, so that what a process holds is what it uses."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
