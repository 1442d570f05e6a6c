"""The folder of a run: checkpoints/step-NNNNNNNNN, the newest of them, and best/.

best/ is a checkpoint of its own whose files are linked to those of its step, so that it outlives
the step's folder and costs no space while both are there.
"""

from __future__ import annotations

import errno
import math
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vqvae2_fast.checkpoints.files import (
    DamagedError,
    link_folder,
    read_json,
)
from vqvae2_fast.checkpoints.locate import CHECKPOINTS, checkpoints_of, step_folder
from vqvae2_fast.files.durable import aside, remove_dead_folders, remove_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["best_record", "better", "clear_run", "keep_best", "locked_run", "remove_old"]

_BEST = "best"


def remove_old(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run; best/ stays."""
    for folder in checkpoints_of(run)[:-keep]:
        remove_folder(folder)


def clear_run(run: Path) -> None:
    """Delete the checkpoints and logs of a run, in a folder that is locked; what else is there
    stays."""
    for name in (_BEST, CHECKPOINTS, "tensorboard"):
        if (run / name).exists():
            shutil.rmtree(run / name)
    (run / "log.jsonl").unlink(missing_ok=True)


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
        remove_dead_folders(run / CHECKPOINTS, ".*.part")
        remove_dead_folders(run, f".{_BEST}.*.part")
        if (run / _BEST).exists():
            shutil.rmtree(aside(run / _BEST), ignore_errors=True)
        yield


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
    record: dict[str, Any] | None = state.get("best")
    if record is None:
        return None
    fits = isinstance(record, dict) and (
        type(record.get("step")) is int
        and isinstance(record.get("metric"), str)
        and type(record.get("value")) in (int, float)
    )
    if not fits:
        raise ValueError(
            f"load_training: expected best to be a step, metric and value, got {record!r}."
        )
    return record


def _same(first: Path, second: Path) -> bool:
    try:
        return read_json(first) == read_json(second)
    except DamagedError:
        return False
