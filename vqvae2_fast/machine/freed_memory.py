"""Memory that the C library keeps for the next allocation."""

from __future__ import annotations

import ctypes
import re

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
# Before this version, aligned blocks such as PyTorch's often do not fit where one of the same size
# was freed (bug 30723 of glibc).
_OLDEST_GLIBC = (2, 38)


def keep_freed_memory() -> None:
    """Let this process keep the memory that its tensors on the CPU free.

    glibc returns blocks of more than 32 MiB to the system when they are freed, and smaller ones if
    they lie at the end of its memory. What is allocated next then begins with a page fault for each
    4 KiB, in which the system clears them. A training step on images of 64×64 and more takes 1.1 to
    1.3 times as long because of that (`benchmarks/freed_memory.py`). With this call, the most
    memory that was in use changed by 6 % at most, but all of it is kept until the process ends,
    also what was not a tensor's. Processes that are forked do the same.

    It helps the main thread only, because glibc gives others no large blocks of memory to keep. It
    does nothing where the C library is not glibc 2.38 or later. The commands of `vqvae2-fast` call
    it when they run on the CPU, except `serve`. A script that trains calls it once, at the start.
    """
    try:
        # Symbols of the process itself, which Windows does not have.
        library = ctypes.CDLL(None)
        version, mallopt = library.gnu_get_libc_version, library.mallopt
    except (AttributeError, OSError, TypeError):
        return
    version.restype = ctypes.c_char_p
    numbers = re.match(rb"(\d+)\.(\d+)", version())
    if numbers and tuple(map(int, numbers.groups())) >= _OLDEST_GLIBC:
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_MMAP_MAX, 0)
