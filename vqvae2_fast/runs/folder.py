"""The folder of a run: checkpoints/step-NNNNNNNNN, of which only the newest are kept, and best/.

best/ is a checkpoint of its own. Its files are hard links to those of its step: it outlives the
step's folder, and takes no space while both exist.
"""

from __future__ import annotations

import math
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vqvae2_fast.checkpoints.files import (
    DamagedError,
    link_folder,
    read_json,
)
from vqvae2_fast.checkpoints.locate import CHECKPOINTS, checkpoints_of, latest, step_folder
from vqvae2_fast.checkpoints.sums import check_sums
from vqvae2_fast.files.durable import alone_in, aside, remove_dead_folders, remove_folder
from vqvae2_fast.files.mapped import check_utf8

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "best_record",
    "better",
    "check_may_begin",
    "check_run_folder",
    "clear_run",
    "keep_best",
    "locked_run",
    "other_than_run",
    "remove_old",
    "set_newer_aside",
]

_BEST = "best"
# What a command writes at the end of a run.
_RESULTS = ("result.json", "curves.png", "reconstructions.png")
_OTHERS = {
    "config.json": "a checkpoint or pipeline",
    "manifest.json": "a code store",
    "train/manifest.json": "a folder of code stores",
    "held_out/manifest.json": "a folder of code stores",
    "samples.jsonl": "a folder of samples",
}


def remove_old(run: Path, keep: int) -> None:
    """Delete all checkpoints of a run except the newest `keep`; best/ stays."""
    for folder in checkpoints_of(run)[:-keep]:
        remove_folder(folder)


def set_newer_aside(run: Path, whole: Path | None) -> None:
    """Rename the checkpoints that are newer than `whole`, or all, to step-NNNNNNNNN.damaged.

    Otherwise `remove_old` would keep them as the newest, and delete what a run that goes back to
    `whole` saves until it has passed them.
    """
    for folder in reversed(checkpoints_of(run)):
        if folder == whole:
            return
        target = folder.with_name(f"{folder.name}.damaged")
        while target.exists():  # from an earlier time that this step was damaged
            target = target.with_name(f"{target.name}.damaged")
        folder.rename(target)


def clear_run(run: Path) -> None:
    """Delete the checkpoints, logs and results of a run, in a folder that is locked; what else is
    there stays. Of a link to a folder only the link is deleted."""
    for name in (_BEST, CHECKPOINTS, "tensorboard", "log.jsonl", *_RESULTS):
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_run_folder(run: Path) -> None:
    """Raise ValueError if the folder belongs to something other than a run, or its path is not
    UTF-8."""
    check_utf8(run)  # before hours of training: a checkpoint there could not be loaded
    if what := other_than_run(run):
        raise ValueError(f"{run} is {what}, not a run. Name another output folder.")


def check_may_begin(run: Path, *, resume: bool, overwrite: bool | None = None) -> None:
    """Raise ValueError if a run is in the folder that is neither to be continued nor deleted.

    Args:
        overwrite: None for a caller that never deletes one.
    """
    if not (resume or overwrite) and latest(run) is not None:
        delete = "" if overwrite is None else " delete it with overwrite,"
        raise ValueError(
            f"out: {run} holds a run already. Continue it with resume,{delete} or name another "
            "folder."
        )


def other_than_run(folder: Path) -> str:
    """What a folder belongs to, if that is something other than a run; "" otherwise."""
    return next((what for name, what in _OTHERS.items() if (folder / name).exists()), "")


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Makes a run's folder this process's own, and removes what killed writers left there.

    Raises:
        RuntimeError: If another process is training in it.
        ValueError: If the folder belongs to something else, or its lock is a link, a FIFO or the
            like.
    """
    check_run_folder(run)
    run.mkdir(parents=True, exist_ok=True)
    taken = f"another process is training in {run}. Wait for it, or name another output folder."
    with alone_in(run, taken):
        remove_dead_folders(run / CHECKPOINTS, ".*.part")
        remove_dead_folders(run, f".{_BEST}.*.part")
        if (run / _BEST).exists():
            shutil.rmtree(aside(run / _BEST), ignore_errors=True)
        yield


def better(value: float, record: float | None, *, lower: bool) -> bool:
    """Whether a validation figure beats the record so far; NaN never does."""
    if math.isnan(value):
        return False
    return record is None or (value < record if lower else value > record)


def keep_best(run: Path, step: int) -> None:
    """Make best/ a second name of a step's checkpoint, unless it is that already.

    Nothing happens if the step's folder was removed long ago: best/ is then all that is left of it.
    """
    best, folder = run / _BEST, step_folder(run, step)
    if folder.is_dir() and not _is_that(best, folder):
        link_folder(folder, best)


def best_record(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best validation figure in a run's state: `step`, `metric`, `value`; None before any.

    Raises:
        ValueError: If it is not such a record.
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
        raise ValueError(f"expected best to be a step, metric and value, got {record!r}.")
    return record


def _is_that(best: Path, folder: Path) -> bool:
    """Whether best/ has the files of this checkpoint, or whole ones of an equal one.

    It may still have those of a damaged one of the same step, which was moved aside before the run
    came to this step again.
    """
    try:
        if all((best / file.name).samefile(file) for file in folder.iterdir()):
            return True
        if read_json(best / "state.json") != read_json(folder / "state.json"):
            return False
        check_sums(best)
    except (DamagedError, FileNotFoundError):
        return False
    return True
