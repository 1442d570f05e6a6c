"""How many threads the quota of a container leaves room for.

A control group may limit the processor time of its processes: with `docker run --cpus 2`, two
seconds in each second, however many cores there are. PyTorch counts the cores. Threads that wait
for each other use up the quota too, and then all are stopped for the rest of each 0.1 s.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quota_of", "threads_within_quota", "within_quota"]

# The part of a processor that a last thread needs. On two cores of a Zen 4, two threads were slower
# than one with a quota of 1.5 processors, and as fast with 1.75.
_WORTH_A_THREAD = 0.75


def threads_within_quota(threads: int) -> int:
    """The number of threads, or fewer if the quota of this process has no room for them."""
    quota = _quota_at(int(time.monotonic()))
    if quota is None:
        return threads
    return max(1, min(threads, int(quota + 1 - _WORTH_A_THREAD)))


@contextmanager
def within_quota() -> Iterator[None]:
    """In the block or decorated function, PyTorch has no more threads than the quota has room for.

    A Python thread that first uses PyTorch during the block also gets the lower number, and keeps
    it.
    """
    threads = torch.get_num_threads()
    fewer = threads_within_quota(threads)
    if fewer == threads:
        yield
        return
    torch.set_num_threads(fewer)
    try:
        yield
    finally:
        if torch.get_num_threads() == fewer:  # else the block has set a number of its own
            torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _quota_at(_second: int) -> float | None:
    return quota_of(Path("/proc/self"))


def quota_of(process: Path) -> float | None:
    """Seconds of processor time that a process may use in a second; None if there is no limit.

    Args:
        process: Its folder in `/proc`.
    """
    try:
        limits = [limit for group in _groups(process) for limit in _limits(group)]
    except (OSError, ValueError, IndexError):
        return None  # no Linux, or a form that is not known
    return min(limits, default=None)


def _groups(process: Path) -> Iterator[Path]:
    """The folders of the control groups that limit its processor time, the outer ones too."""
    paths: dict[str, PurePosixPath] = {}  # by type of file system
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if "cpu" in controllers.split(","):
            paths["cgroup"] = PurePosixPath(group)
        elif not controllers:
            paths["cgroup2"] = PurePosixPath(group)
    for line in (process / "mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        root, folder = mount.split(" ")[3:5]
        path = paths[kind]
        if path.is_relative_to(root):
            inside = path.relative_to(root)
        elif path == PurePosixPath("/") and root.startswith("/.."):
            inside = PurePosixPath()  # the mount is an outer group; its own is not to be seen
        else:
            continue  # a mount of other groups
        innermost = Path(folder) / inside
        yield from [innermost, *list(innermost.parents)[: len(inside.parts)]]


def _limits(group: Path) -> Iterator[float]:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        files = [group / name for name in names]
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
