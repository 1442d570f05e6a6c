"""Files that survive a crash: written whole, waited for, renamed into place; and a folder's lock.

The order is what counts. A file's bytes are on the disk before it gets its name, and its name is on
the disk before anything that refers to it is written.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

__all__ = [
    "aside",
    "create_part",
    "lock_file",
    "locked",
    "new_folder",
    "remove_dead_folders",
    "remove_dead_parts",
    "remove_folder",
    "rename_synced",
    "renamed_into_place",
    "replace_file",
    "replaced_folder",
    "sync_file",
    "sync_folder",
    "write_all",
    "write_file",
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


def write_file(path: Path, content: bytes) -> None:
    """Gives `path` this content, making its folder.

    Raises:
        OSError: The disk is full, ...; names the path, which is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


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
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new hidden folder, beside `path`, that takes its place at the end of the block.

    A rename cannot replace a folder that holds files, so an old one first steps aside, to
    `aside(path)`: at every moment either it or the new one is whole on the disk.
    """
    with new_folder(path) as part:
        yield part
        sync_folder(part)
        if path.exists():
            shutil.rmtree(aside(path), ignore_errors=True)
            os.rename(path, aside(path))
        os.rename(part, path)
    sync_folder(path.parent)
    shutil.rmtree(aside(path), ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, locked while the block lasts, removed on an error.

    What killed writers of the same path left is removed before.
    """
    remove_dead_folders(path.parent, f".{path.name}.*.part")
    while True:
        part = path.with_name(f".{path.name}.{uuid4().hex}.part")
        part.mkdir()
        descriptor = _lock_folder(part, wait=True)
        if part.exists():  # else another process took it for that of a dead one, before the lock
            break
        if descriptor is not None:
            os.close(descriptor)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Removes a folder; killed meanwhile it leaves all of it, or a rest that is hidden."""
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    os.rename(path, part)
    shutil.rmtree(part, ignore_errors=True)


def remove_dead_folders(parent: Path, pattern: str) -> None:
    """Removes unfinished folders of killed writers; nothing where folders cannot be locked."""
    for part in parent.glob(pattern):
        descriptor = _lock_folder(part, wait=False)
        if descriptor is not None:
            shutil.rmtree(part, ignore_errors=True)
            os.close(descriptor)


def _lock_folder(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that locks a folder until it is closed, or its process ends; None without."""
    if sys.platform == "win32":
        return None
    import fcntl  # absent on Windows

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another holds it, or the file system has no locks of folders
        os.close(descriptor)
        return None
    return descriptor


def aside(path: Path) -> Path:
    """Where a folder stands while another takes its place."""
    return path.with_name(f".{path.name}.old")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, waiting for it; the system drops the lock of a process that dies.

    Raises:
        RuntimeError: On Windows, which has no such locks.
    """
    with (folder / _LOCK).open("ab") as file:
        lock_file(file, wait=True)
        yield


def create_part(folder: Path, name: str) -> tuple[FileIO, Path]:
    """A new hidden file to be renamed to `name`, locked while this process has it open.

    The caller holds the folder's lock, so that `remove_dead_parts` never sees it unlocked.
    """
    part = folder / f".{name}.{uuid4().hex}.part"
    file = part.open("xb", buffering=0)
    lock_file(file, wait=True)
    return file, part


def remove_dead_parts(folder: Path) -> None:
    """Removes unfinished files whose writer is dead; the caller holds the folder's lock."""
    for part in folder.glob(".*.part"):
        if part.is_symlink() or not part.is_file():
            continue
        with part.open("rb") as file:
            if lock_file(file, wait=False):
                part.unlink(missing_ok=True)


def lock_file(file: IO[bytes], *, wait: bool, shared: bool = False) -> bool:
    """Locks a file until it is closed; whether it did, which without `wait` it may not.

    Raises:
        RuntimeError: On Windows, which has no such locks.
    """
    if sys.platform == "win32":
        raise RuntimeError("writing here needs file locks, which Windows lacks.")
    import fcntl  # absent on Windows

    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
