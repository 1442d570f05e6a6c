"""A folder that one process at a time writes to."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["alone_in"]


@contextmanager
def alone_in(folder: Path, taken: str, name: str = ".lock") -> Iterator[None]:
    """Locks a folder until the block or the process ends; workers forked inside do not hold it.

    On Unix it uses fcntl, because filelock cannot lock a folder, and its versions before 4 leave
    locks with forked workers, which outlive a killed writer. The folder's own lock holds even if
    somebody deletes the lock file. On a network file system it may hold on this machine only; then
    the file keeps out the other machines.

    Args:
        taken: What the error says.
        name: Of the lock file, which stays. It must not be one that `durable.locked` takes inside.

    Raises:
        RuntimeError: If another process holds it.
        ValueError: If the name of the lock file is taken by a link, a FIFO or the like.
    """
    if sys.platform == "win32":
        from filelock import FileLock, Timeout

        lock = FileLock(folder / name)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise RuntimeError(taken) from error
        try:
            yield
        finally:
            lock.release()
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _locked.add(descriptor)
    try:
        with open_untrusted(folder / name, "ab") as file:
            for hold, target in ((fcntl.flock, descriptor), (fcntl.lockf, file.fileno())):
                try:
                    hold(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise RuntimeError(taken) from error
                    # Otherwise the file system has no such locks, and the block runs without one.
            yield
    finally:
        _locked.discard(descriptor)
        os.close(descriptor)


def _close_locked() -> None:
    while _locked:
        os.close(_locked.pop())


_locked: set[int] = set()  # descriptors of locked folders
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locked)
