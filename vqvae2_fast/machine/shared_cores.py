"""Cores that other processes use at the same time.

GNU OpenMP's threads spin for a while after each parallel region before they sleep. On idle cores
this pays, because a thread that sleeps wakes late. Beside another process, a thread that spins
keeps a core from the thread that has work. How long they spin is fixed when the library is loaded,
but they spin only 100 rounds while there are more OpenMP threads than cores. So idle teams of
threads are added while other processes use the cores.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.machine.cores import own_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CoreWatch", "IdleTeams", "shared_cores"]

# Seconds that the threads of this process waited for a core, for each core and second: 0.003 on two
# idle cores, and 0.3 there beside one other process, whether the threads spin or not.
_BUSY, _FREE = 0.1, 0.03
_INTERVAL = 0.5
_MOST_TEAMS = 4
_GRAIN = 1 << 15  # elements that PyTorch gives each thread; below, it starts no team


class IdleTeams:
    """Further teams of OpenMP threads, which sleep, so that all such threads spin only briefly."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._members: list[threading.Thread] = []
        self._refused = False

    @property
    def started(self) -> bool:
        return bool(self._members)

    def start(self) -> None:
        """Does nothing with one thread, where most cores are unused, or once there was no room."""
        if self._refused:
            return
        found: list[int] = []
        # OpenMP keeps this number for each thread, and a new thread gets the present one.
        self._begin(lambda: found.append(torch.get_num_threads()), 1)
        self.stop()
        threads = found[0] if found else 1
        # A team has threads - 1 of its own and the one that starts it, which does not count.
        teams = (len(own_cores()) - 1) // (threads - 1) if threads > 1 else 0
        if not 1 <= teams <= _MOST_TEAMS:
            return
        # GNU OpenMP ends the process if there is no room for a thread, so Python's try first.
        self._begin(self._over.wait, teams * threads)
        self.stop()
        if self._refused:
            return

        def lead() -> None:
            torch.empty(threads * _GRAIN, dtype=torch.uint8, device="cpu").fill_(0)  # starts a team
            self._over.wait()

        self._begin(lead, teams)

    def stop(self) -> None:
        """Ends the teams; each ends with the thread that started it."""
        self._over.set()
        for member in self._members:
            member.join()
        self._members = []

    def _begin(self, run: Callable[[], object], count: int) -> None:
        self._over.clear()
        for _ in range(count):
            member = threading.Thread(target=run, daemon=True)
            try:
                member.start()
            except RuntimeError:  # no room for a thread
                self._refused = True
                self.stop()
                return
            self._members.append(member)


class CoreWatch:
    """Starts `teams` when the threads of this process wait for cores, and stops them after that.

    Args:
        waited: Nanoseconds that each thread has waited so far.
        clock: Seconds.
        num_cores: None: as many as the process may use.
    """

    def __init__(
        self,
        teams: IdleTeams,
        waited: Callable[[], dict[str, int]],
        clock: Callable[[], float] = time.monotonic,
        num_cores: int | None = None,
    ) -> None:
        self._teams, self._read, self._clock = teams, waited, clock
        self._cores = num_cores or len(own_cores()) or 1
        self._before, self._time = waited(), clock()

    def look(self) -> None:
        before, now, then, time_now = self._before, self._read(), self._time, self._clock()
        self._before, self._time = now, time_now
        # A thread that began, or that could not be read before, counts from the next look on.
        waited = sum(max(0, time - before.get(thread, time)) for thread, time in now.items())
        share = waited / 1e9 / max(time_now - then, 1e-3) / self._cores
        if share > _BUSY and not self._teams.started:
            self._teams.start()
        elif share < _FREE and self._teams.started:
            self._teams.stop()


def _waited() -> dict[str, int]:
    """Nanoseconds that each thread of this process waited for a core; empty where the kernel does
    not count them."""
    found = {}
    try:
        for file in Path("/proc/self/task").glob("*/schedstat"):
            try:
                found[file.parent.name] = int(file.read_text(encoding="ascii").split()[1])
            except (OSError, ValueError, IndexError):  # it has ended
                continue
    except OSError:  # no file can be opened
        pass
    return found


@contextmanager
def shared_cores() -> Iterator[None]:
    """Lets GNU OpenMP's threads spin less in this block while other processes use the cores.

    On two cores beside a busy process, a training step takes about half the time with it
    (`benchmarks/shared_cores.py`). No result depends on it. It was tried with two cores only. It
    does nothing where Linux does not count how long threads wait, where another OpenMP is used, or
    where `OMP_WAIT_POLICY` is set. Inside another such block of the process it does nothing either.
    All commands of `vqvae2-fast` and `train` use it. On two cores `train` also takes one thread
    instead of two, where a step gives the same bits on both.
    """
    with ExitStack() as held:
        if "OMP_WAIT_POLICY" not in os.environ and _waited() and _only_one.acquire(blocking=False):
            held.callback(_only_one.release)
            teams, over = IdleTeams(), threading.Event()
            held.callback(teams.stop)
            watch = CoreWatch(teams, _waited)

            def run() -> None:
                while not over.wait(_INTERVAL):
                    watch.look()

            thread = threading.Thread(target=run, name="shared_cores", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no room for a thread: the work goes on without it
                pass
            else:
                held.callback(thread.join)
                held.callback(over.set)
        yield


def _forget() -> None:
    """In a forked process, which has no thread of the other one."""
    global _only_one
    _only_one = threading.Lock()


_only_one = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
