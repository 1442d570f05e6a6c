"""As many threads as there are cores that other processes leave.

Two threads that share one core with another process take longer than one thread that has a core,
because each parallel region waits for the slower of the two.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FittingThreads"]

_INTERVAL = 0.5  # seconds
# How much of a core others must use before it is given up, and may use when it is taken again. Two
# threads and another process share two cores by thirds, so that it has two thirds of one.
_GIVEN_UP, _TAKEN_AGAIN = 0.6, 0.3


class FittingThreads:
    """Chooses a number of threads: at most torch's, and no more than other processes leave cores.

    It is for work whose results do not depend on the number.

    Args:
        busy: Seconds that the cores of this process have been busy so far, whatever they ran; None
            where the system does not say.
        own: Seconds of processor time that this process has used.
        clock: Seconds.
        num_cores: Cores that this process may use.
    """

    def __init__(
        self,
        busy: Callable[[], float | None] | None = None,
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        num_cores: int | None = None,
    ) -> None:
        self._cores = num_cores or len(_own_cores())
        self._busy, self._own, self._clock = busy or _busy, own, clock
        self._fitting = self._cores
        self._before = self._read()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Inside it, this thread's torch has that many threads."""
        most, left = torch.get_num_threads(), self.number()
        threads = most if left is None else min(most, left)
        if threads == most:
            yield
            return
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(most)

    def number(self) -> int | None:
        """The cores that others leave, at least 1, as they were used in the last half second; None
        where the system does not say."""
        now = self._read()
        if now is None or self._before is None:
            return None
        seconds, busy, own = (b - a for a, b in zip(self._before, now, strict=True))
        if seconds >= _INTERVAL:
            self._before = now
            left = self._cores - max(0.0, busy - own) / seconds
            fewer, more = math.ceil(left - 1 + _GIVEN_UP), math.ceil(left - 1 + _TAKEN_AGAIN)
            self._fitting = max(1, min(max(self._fitting, more), fewer))
        return self._fitting

    def _read(self) -> tuple[float, float, float] | None:
        busy = self._busy()
        return None if busy is None else (self._clock(), busy, self._own())


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def _busy() -> float | None:
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        own = {f"cpu{core}" for core in _own_cores()}
        ticks = 0
        for name, *fields in (line.split() for line in lines):
            if name in own:
                user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
                ticks += user + nice + system + irq + softirq
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
