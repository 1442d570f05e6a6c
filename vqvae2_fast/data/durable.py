"""Files that survive a crash: written whole, waited for, renamed into place; and a folder's lock.

The order is what counts. A file's bytes are on the disk before it gets its name, and its name is on
the disk before anything that refers to it is written.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

__all__ = [
    "create_part",
    "locked",
    "remove_dead_parts",
    "rename_synced",
    "renamed_into_place",
    "replace_file",
    "sync_file",
    "sync_folder",
    "write_all",
]

_LOCK = ".lock"


def write_all(file: FileIO, content: bytes) -> None:
    """Writes all of content to an unbuffered file; a full disk takes a part without an error."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def sync_file(file: FileIO) -> None:
    """Waits until the file's bytes are on the disk."""
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the folder's names are on the disk."""
    if os.name == "nt":  # folders cannot be opened there, and renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_synced(source: Path, target: Path) -> None:
    """Renames within a folder and waits for the disk."""
    os.replace(source, target)
    sync_folder(target.parent)


def replace_file(path: Path, content: bytes, before: Callable[[], None] | None = None) -> None:
    """Gives `path` this content, or leaves what it was if that fails at any point.

    `before` is called when the content is on the disk and has only to be renamed.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with part.open("xb", buffering=0) as file:
            write_all(file, content)
            sync_file(file)
        if before is not None:
            before()
        rename_synced(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def renamed_into_place(path: Path) -> Iterator[Path]:
    """A hidden path to write, renamed to `path` at the end of the block; removed on an error."""
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield part
        with part.open("rb+", buffering=0) as file:
            sync_file(file)
        rename_synced(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, waiting for it; the system drops the lock of a process that dies.

    Raises:
        RuntimeError: On Windows, which has no such locks.
    """
    with (folder / _LOCK).open("ab") as file:
        _flock(file, wait=True)
        yield


def create_part(folder: Path, name: str) -> tuple[FileIO, Path]:
    """A new hidden file to be renamed to `name`, locked while this process has it open.

    The caller holds the folder's lock, so that `remove_dead_parts` never sees it unlocked.
    """
    part = folder / f".{name}.{uuid4().hex}.part"
    file = part.open("xb", buffering=0)
    _flock(file, wait=True)
    return file, part


def remove_dead_parts(folder: Path) -> None:
    """Removes unfinished files whose writer is dead; the caller holds the folder's lock."""
    for part in folder.glob(".*.part"):
        if part.is_symlink() or not part.is_file():
            continue
        with part.open("rb") as file:
            if _flock(file, wait=False):
                part.unlink(missing_ok=True)


def _flock(file: IO[bytes], *, wait: bool) -> bool:
    if sys.platform == "win32":
        raise RuntimeError("code store: writing needs file locks, which Windows lacks.")
    import fcntl  # absent on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
