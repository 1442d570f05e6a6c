"""Which torch to build against: any from 2.11 on, since its headers have that stable ABI."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

OLDEST_TORCH = (2, 11)


def is_new_enough(folder: Path) -> bool:
    """Whether a folder holds a torch with headers, and not one before 2.11."""
    try:
        version = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
    except OSError:
        return False
    if version is None or not (folder / "include/torch/csrc/stable/library.h").is_file():
        return False
    return tuple(map(int, version.groups())) >= OLDEST_TORCH


def installed_torch() -> Path | None:
    """Folder of the torch of the environment that is installed into, if it is new enough.

    Build isolation hides that environment from sys.path, not from sysconfig.
    """
    for scheme in ("purelib", "platlib"):
        folder = Path(sysconfig.get_path(scheme)) / "torch"
        if is_new_enough(folder):
            return folder
    return None
