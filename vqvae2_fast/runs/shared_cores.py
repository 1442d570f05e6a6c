"""Cores that other processes use at the same time.

GNU OpenMP's threads spin for a while after each parallel region before they sleep. On idle cores
this pays, because a thread that sleeps wakes late. Beside another process it keeps the thread that
has work off its core. How long they spin is fixed when the library is loaded, but it is short while
there are more OpenMP threads than cores. So idle teams of threads are added when cores are busy.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CoreWatch", "IdleTeams", "shared_cores"]

# Seconds that all threads together waited for a core, in each second: 0.01 on idle cores, 0.6 on
# two cores beside one other process, whether the threads spin or not.
_BUSY, _FREE = 0.15, 0.05
_INTERVAL = 0.5
_MOST_TEAMS = 4
_GRAIN = 1 << 15  # elements of PyTorch's operators for each thread


class IdleTeams:
    """Further teams of OpenMP threads, which sleep, so that all OpenMP threads spin shortly."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._members: list[threading.Thread] = []

    @property
    def started(self) -> bool:
        return bool(self._members)

    def start(self) -> None:
        threads = torch.get_num_threads()
        if threads == 1:
            return
        # A team has threads - 1 of its own and the one that starts it, which does not count.
        teams = (_cores() - 1) // (threads - 1)
        if teams > _MOST_TEAMS:  # so few of the cores are used that others are free
            return
        self._over.clear()

        def lead() -> None:
            torch.empty(threads * _GRAIN, dtype=torch.uint8).fill_(0)  # starts the team
            self._over.wait()

        self._members = [threading.Thread(target=lead, daemon=True) for _ in range(teams)]
        for member in self._members:
            member.start()

    def stop(self) -> None:
        """Teams end with the threads that started them."""
        self._over.set()
        for member in self._members:
            member.join()
        self._members = []


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class CoreWatch:
    """Starts `teams` when the threads of this process wait for cores, and stops them after that.

    Args:
        waited: Nanoseconds that each thread has waited so far.
        clock: Seconds.
    """

    def __init__(
        self,
        teams: IdleTeams,
        waited: Callable[[], dict[str, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._teams, self._read, self._clock = teams, waited, clock
        self._before, self._time = waited(), clock()

    def look(self) -> None:
        before, now, then, time_now = self._before, self._read(), self._time, self._clock()
        self._before, self._time = now, time_now
        waited = sum(time - before.get(thread, 0) for thread, time in now.items())
        share = waited / 1e9 / max(time_now - then, 1e-3)
        if share > _BUSY and not self._teams.started:
            self._teams.start()
        elif share < _FREE and self._teams.started:
            self._teams.stop()


def _waited() -> dict[str, int]:
    """Nanoseconds that each thread of this process waited for a core; empty if nobody counts."""
    found = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found[file.parent.name] = int(file.read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):  # it has ended
            continue
    return found


@contextmanager
def shared_cores() -> Iterator[None]:
    """Lets OpenMP's threads spin less in this block while other processes use the cores.

    Beside another process, training steps take half the time with it or less; on idle cores
    nothing changes (`benchmarks/shared_cores.py`). No result depends on it. It does nothing where
    Linux does not count how long threads wait, or where `OMP_WAIT_POLICY` is set. All commands of
    `vqvae2-fast` and `train` use it.
    """
    if "OMP_WAIT_POLICY" in os.environ or not _waited() or not _only_one.acquire(blocking=False):
        yield
        return
    teams = IdleTeams()
    watch, over = CoreWatch(teams, _waited), threading.Event()

    def run() -> None:
        while not over.wait(_INTERVAL):
            watch.look()

    thread = threading.Thread(target=run, name="shared_cores", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        teams.stop()
        _only_one.release()


_only_one = threading.Lock()
