"""Memory that the C library keeps for the next allocation."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h


def keep_freed_memory() -> None:
    """Let this process keep the memory that its tensors on the CPU free.

    glibc returns blocks of more than 32 MiB to the system when they are freed, and smaller ones if
    they lie at the end of its memory. What is allocated next then begins with a page fault for each
    4 KiB, in which the system clears them. A training step on images of 64×64 and more takes up to
    a quarter longer for that (`benchmarks/freed_memory.py`). With this call the largest amount of
    memory in use stays the same, but it is kept until the process ends.

    All commands of `vqvae2-fast` call this. A script that trains calls it once, at the start. It
    does nothing where the C library is not glibc.
    """
    try:
        # Symbols of the process itself, which Windows does not have.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    except (OSError, TypeError):
        return
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)  # never
        # Older versions of glibc refuse a threshold for mmap of more than 32 MiB.
        mallopt(_MMAP_MAX, 0)
