"""What is wrong with a path that should be that of a folder, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["why_no_folder"]


def why_no_folder(path: Path) -> str | None:
    """What a message says of a path that is no folder, after its name; None for a folder."""
    if path.is_dir():
        return None
    return "is a file" if path.exists() else "does not exist"
