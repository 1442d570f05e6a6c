"""Resident memory, as the system reports it: how far a call raises it. Linux only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def numbers_of(script: str, *arguments: str, count: int) -> list[float]:
    """The last numbers that a script prints in a new process; NaN if the system does not report
    its memory."""
    if not Path("/proc/self/clear_refs").exists():
        return [float("nan")] * count
    # glibc keeps freed blocks below this size, which would hide what a call takes.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    result = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return [float(number) for number in result.stdout.split()[-count:]]


def rise_of(run: Callable[[], object]) -> float:
    """MiB that a call needs beyond the resident memory before it."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    run()
    return max(0.0, resident("VmHWM") - before)


def resident(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) / 1024  # type: ignore[index]
