"""One thread instead of two where another process needs one of two cores.

Two threads that share one core with another process take longer than one thread that has a core,
because each parallel region waits for the slower of the two.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.machine.cores import own_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FittingThreads"]

_INTERVAL = 0.5  # seconds
# How much of a core others must use before it is left to them, and may use when it is taken again.
# Two threads and another process share two cores by thirds, so that it has two thirds of one.
_LEFT, _TAKEN_AGAIN = 0.6, 0.3


class FittingThreads:
    """Says whether work that has two threads should take one, because of other processes.

    It is for work whose results do not depend on the number of threads. Only two cores are decided
    about: with more, how many to leave was not tried, and others may take whatever is left.

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
        self._busy, self._own, self._clock = busy or _busy, own, clock
        self._decides = (num_cores or len(own_cores())) == 2
        self._one = False
        self._time = self._clock()
        self._before = self._read()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """In the block torch has one thread if it has two and should take one."""
        threads = torch.get_num_threads()
        if threads != 2 or not self.should_take_one():
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def should_take_one(self) -> bool:
        """By what others used since half a second ago, or since the last call if that is longer."""
        now = self._clock()
        if now - self._time < _INTERVAL:
            return self._one
        before, self._before = self._before, self._read()
        seconds, self._time = now - self._time, now
        if before is None or self._before is None:
            self._one = False
            return False
        busy, own = (b - a for a, b in zip(before, self._before, strict=True))
        self._one = (busy - own) / seconds > (_TAKEN_AGAIN if self._one else _LEFT)
        return self._one

    def _read(self) -> tuple[float, float] | None:
        busy = self._busy() if self._decides else None
        return None if busy is None else (busy, self._own())


def _busy() -> float | None:
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        own = {f"cpu{core}" for core in own_cores()}
        ticks = 0
        for name, *fields in (line.split() for line in lines):
            if name in own:
                user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
                ticks += user + nice + system + irq + softirq
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
