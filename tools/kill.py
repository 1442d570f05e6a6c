"""What the tools that kill writers share: ending processes by SIGKILL, and comparing folders."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.process import BaseProcess
    from pathlib import Path

__all__ = ["contents", "kill_after", "unfinished"]


def kill_after(
    seconds: float,
    targets: Sequence[Callable[[], object]],
    meanwhile: Callable[[], object] = lambda: None,
) -> int:
    """Runs each target in a process of its own and kills those still alive after `seconds`.

    Processes are forked, so that imports are done and a target may be a closure; this process must
    have only one thread. It stops waiting early if all targets finish.

    Args:
        meanwhile: Called repeatedly in this process while it waits.

    Returns:
        How many were killed.

    Raises:
        AssertionError: A target failed by itself.
    """
    context = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = [context.Process(target=target) for target in targets]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.is_alive() for process in processes):
        meanwhile()
        time.sleep(0.002)
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert all(code in (0, -signal.SIGKILL) for code in codes), f"exit codes {codes}"
    return codes.count(-signal.SIGKILL)


def contents(folder: Path, *, leave_out: Sequence[str] = ()) -> dict[str, bytes]:
    """The bytes of every file below a folder, by path; hidden files are included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }


def unfinished(folder: Path) -> list[str]:
    """Hidden files and folders below a folder, except locks: what a killed writer left."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob(".*"))
        if path.name != ".lock"
    ]
