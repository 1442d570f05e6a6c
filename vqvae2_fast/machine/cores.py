"""The cores of this process."""

from __future__ import annotations

import os

__all__ = ["own_cores"]


def own_cores() -> set[int]:
    """The numbers of the cores that this process may use; none where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
