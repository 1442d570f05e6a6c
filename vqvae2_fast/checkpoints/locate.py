"""Where checkpoints are: the one that a path means, and those of a run, oldest to newest.

A run keeps its checkpoints in checkpoints/step-NNNNNNNNN, and the best of them again in best/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vqvae2_fast.checkpoints.files import DamagedError
from vqvae2_fast.checkpoints.sums import check_sums
from vqvae2_fast.files.durable import aside
from vqvae2_fast.files.printable import why_no_folder
from vqvae2_fast.ops._checks import type_in_words

__all__ = [
    "CHECKPOINTS",
    "as_path",
    "checkpoint_folder",
    "checkpoints_of",
    "latest",
    "newest_whole",
    "previous",
    "step_folder",
    "step_of",
]

CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-(\d{1,18})")


def step_folder(run: Path, step: int) -> Path:
    """Where a run's checkpoint of a step is."""
    return run / CHECKPOINTS / f"step-{step:09d}"


def as_path(
    name: str, value: object, expected: str = "a string or a Path", remedy: str = ""
) -> Path:
    """The path that an argument is. Raises TypeError for something else.

    Args:
        remedy: What to do about it, a sentence.
    """
    if not isinstance(value, (str, os.PathLike)):
        message = f"expected {name} to be {expected}, got {type_in_words(value)}. {remedy}"
        raise TypeError(message.rstrip())
    return Path(value)


def checkpoint_folder(
    path: str | os.PathLike[str],
    name: str = "path",
    expected: str = "the folder of a checkpoint, a pipeline or a run",
) -> Path:
    """The checkpoint that `path` means: the one there, or the latest of the run there.

    Args:
        name: Of the argument or option, for an error message.
        expected: What an error message says was expected.

    Raises:
        FileNotFoundError: If `path` is neither.
        TypeError: If it is no path.
    """
    folder = as_path("path", path)
    if (folder / "config.json").is_file():
        return folder
    newest = latest(folder)
    if newest is not None:
        return newest
    if aside(folder).exists():
        raise FileNotFoundError(
            f"{folder} is missing, but {aside(folder)} holds the checkpoint that an "
            f"interrupted save was replacing. Rename it to {folder.name}."
        )
    raise FileNotFoundError(f"expected {name} to be {expected}; {folder} {_what_is_there(folder)}.")


def latest(run: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint of a run's folder, None without one."""
    found = checkpoints_of(Path(run))
    return found[-1] if found else None


def newest_whole(run: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a run whose files are those that were written, None without one."""
    return next(filter(_is_whole, reversed(checkpoints_of(Path(run)))), None)


def _is_whole(folder: Path) -> bool:
    try:
        check_sums(folder)
    except DamagedError:
        return False
    return True


def previous(folder: Path) -> Path | None:
    """The newest whole checkpoint of the same run before a damaged one."""
    if not _STEP.fullmatch(folder.name) or folder.parent.name != CHECKPOINTS:
        return None
    found = reversed(checkpoints_of(folder.parent.parent))
    return next(
        (path for path in found if step_of(path) < step_of(folder) and _is_whole(path)), None
    )


def checkpoints_of(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [
        folder
        for folder in run.glob(f"{CHECKPOINTS}/step-*")
        if _STEP.fullmatch(folder.name) and (folder / "config.json").is_file()
    ]
    return sorted(found, key=step_of)


def _what_is_there(path: Path) -> str:
    """What a path holds that is not a checkpoint, in words."""
    no_folder = why_no_folder(path)
    if no_folder is not None:
        return no_folder
    if (path / "manifest.json").is_file():
        return "is a code store"
    if any(path.glob("*/manifest.json")):
        return "holds code stores"
    below = sorted(
        {p.parent for p in path.glob("*/config.json")}
        | {p.parent for p in path.glob(f"*/{CHECKPOINTS}")}
    )
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        names = ", ".join(folder.name for folder in below[:3])
        return f"is none itself, but holds some: {names}{more}"
    return "has no config.json"


def step_of(folder: Path) -> int:
    """The step of a run's checkpoint."""
    return int(folder.name.removeprefix("step-"))
