"""The folder of a run: checkpoints/step-NNNNNNNNN, the newest of them, and best/.

best/ is a checkpoint of its own whose files are linked to those of its step, so that it outlives
the step's folder and costs no space while both are there.
"""

from __future__ import annotations

import errno
import math
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae2_fast.data.durable import aside, remove_dead_folders, remove_folder
from vqvae2_fast.training.checkpoint_files import (
    DamagedError,
    check_sums,
    link_folder,
    read_json,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

__all__ = [
    "best_record",
    "better",
    "checkpoint_folder",
    "keep_best",
    "latest",
    "locked_run",
    "previous",
    "remove_old",
    "step_folder",
]

_CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-(\d{1,18})")
_BEST = "best"


def step_folder(run: Path, step: int) -> Path:
    """Where a run's checkpoint of one step stands."""
    return run / _CHECKPOINTS / f"step-{step:09d}"


def latest(run: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint of a run's folder, None without one."""
    found = _checkpoints(Path(run))
    return found[-1] if found else None


def remove_old(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run; best/ stays."""
    for folder in _checkpoints(run)[:-keep]:
        remove_folder(folder)


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Makes a run's folder this process's own, and clears what killed writers left there.

    Raises:
        RuntimeError: If another process has it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("ab") as file:
        if sys.platform != "win32":
            import fcntl  # absent on Windows

            try:
                # A lock of the process: workers, which outlive a killed trainer, do not hold it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise RuntimeError(
                        f"train: another process is training in {run}. Wait for it, or name "
                        "another output folder."
                    ) from error
                # Else the file system has no locks: it goes without.
        remove_dead_folders(run / _CHECKPOINTS, ".*.part")
        remove_dead_folders(run, f".{_BEST}.*.part")
        if (run / _BEST).exists():
            shutil.rmtree(aside(run / _BEST), ignore_errors=True)
        yield


def previous(folder: Path) -> Path | None:
    """The newest whole checkpoint of the same run before a damaged one."""
    if not _STEP.fullmatch(folder.name) or folder.parent.name != _CHECKPOINTS:
        return None
    for earlier in reversed(_checkpoints(folder.parent.parent)):
        if _step(earlier) < _step(folder):
            try:
                check_sums(earlier)
            except DamagedError:
                continue
            return earlier
    return None


def better(value: float, record: float | None, *, lower: bool) -> bool:
    """Whether a validation figure beats the record so far; nan never does."""
    if math.isnan(value):
        return False
    return record is None or (value < record if lower else value > record)


def keep_best(run: Path, step: int) -> None:
    """Make best/ a second name of a step's checkpoint, unless it is that already.

    Without the step's folder (removed long ago, and best/ is its second name) nothing is done.
    """
    best, folder = run / _BEST, step_folder(run, step)
    if folder.is_dir() and not _same(best / "state.json", folder / "state.json"):
        link_folder(folder, best)


def best_record(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best validation figure in a run's state: `step`, `metric`, `value`; None before any.

    Raises:
        ValueError: If it is none of ours.
    """
    record = state.get("best")
    if record is None:
        return None
    fits = isinstance(record, dict) and (
        type(record.get("step")) is int
        and isinstance(record.get("metric"), str)
        and type(record.get("value")) in (int, float)
    )
    if not fits:
        raise ValueError(f"resume: expected best to be a step, metric and value, got {record!r}.")
    return record


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that `path` means: itself, or the latest of the run that it is.

    Raises:
        FileNotFoundError: If `path` is neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    newest = latest(folder)
    if newest is not None:
        return newest
    if aside(folder).exists():
        raise FileNotFoundError(
            f"load: {folder} is missing, but {aside(folder)} holds the checkpoint that an "
            f"interrupted save was replacing. Rename it to {folder.name}."
        )
    raise FileNotFoundError(
        f"load: {folder} {_what_is_there(folder)}; expected the folder of a checkpoint, a pipeline "
        "or a run."
    )


def _what_is_there(path: Path) -> str:
    """What a path that is no checkpoint holds, in words."""
    if not path.exists():
        return "does not exist"
    if not path.is_dir():
        return "is a file"
    if (path / "manifest.json").is_file():
        return "is a code store"
    if any(path.glob("*/manifest.json")):
        return "holds code stores"
    below = sorted(
        {p.parent for p in path.glob("*/config.json")}
        | {p.parent for p in path.glob(f"*/{_CHECKPOINTS}")}
    )
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        return f"holds {', '.join(folder.name for folder in below[:3])}{more}, one of which to name"
    return "is no checkpoint: it has no config.json"


def _checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [
        folder
        for folder in run.glob(f"{_CHECKPOINTS}/step-*")
        if _STEP.fullmatch(folder.name) and (folder / "config.json").is_file()
    ]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _same(first: Path, second: Path) -> bool:
    try:
        return read_json(first) == read_json(second)
    except DamagedError:
        return False
