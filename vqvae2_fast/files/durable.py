"""Files that survive a crash: written whole, synced, and renamed into place; and locks.

The order matters: a file's bytes are on the disk before it gets its name, and its name is on the
disk before anything that refers to it is written.

Locks are flock's own rather than those of the package filelock, which locks one extra file and has
no shared locks: here folders and unfinished files are locked themselves, which distinguishes what a
killed process left from what a live one is writing.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

__all__ = [
    "alone_in",
    "aside",
    "create_part",
    "explained",
    "lock_file",
    "locked",
    "new_folder",
    "part_of",
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


@contextmanager
def explained(message: str, remedy: str = "", then: str = "") -> Iterator[None]:
    """Raises the system's errors again, with a message and what to do about them.

    Args:
        message: What failed: "cannot write x".
        remedy: A sentence without its full stop, which follows the system's own words.
        then: What to do once the cause is gone, such as "start again", which becomes "Make room
            and start again" if the disk is full.
    """
    try:
        yield
    except OSError as error:
        parts = [f"{message}: {error.strerror or error}", remedy]
        if then:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            parts.append(f"{'Make room' if full else 'Resolve this'} and {then}")
        raise OSError(error.errno, ". ".join(filter(None, parts))) from error


def part_of(path: Path) -> Path:
    """A new hidden name next to `path`, for what is to be renamed to it once it is whole."""
    return path.with_name(f".{path.name}.{uuid4().hex}.part")


def write_all(file: IO[bytes], content: bytes) -> None:
    """Writes all of the content to an unbuffered file, which may accept only a part at a time."""
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

    `before` is called when the content is on the disk and only the renaming remains.
    """
    with _new_part(path) as (part, file):
        write_all(file, content)
        sync_file(file)
        if before is not None:
            before()


def write_file(path: Path, content: bytes) -> None:
    """Gives `path` this content, making its folder.

    Raises:
        OSError: The disk is full or fails; the error names the path, which is as it was.
    """
    with explained(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


@contextmanager
def renamed_into_place(path: Path) -> Iterator[Path]:
    """A hidden file to write, renamed to `path` at the end of the block; removed on an error."""
    with _new_part(path) as (part, _):
        yield part
        with part.open("rb+", buffering=0) as file:
            sync_file(file)


@contextmanager
def _new_part(path: Path) -> Iterator[tuple[Path, FileIO]]:
    """A hidden file next to `path`, locked during the block and renamed at its end, or removed.

    What killed writers of the same path left is removed first.

    Raises:
        FileExistsError: `path` is a device or the like: /dev/null would become a file for all.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(
            errno.EEXIST, "it is a device, FIFO or socket, which no file is to replace", str(path)
        )
    if sys.platform != "win32":
        remove_dead_parts(path.parent, f".{glob.escape(path.name)}.*.part")
    while True:
        part = part_of(path)
        file = part.open("xb", buffering=0)
        # Windows has no such locks, and some file systems have none: what is left there stays.
        with suppress(OSError, RuntimeError):
            lock_file(file, block=True)
        if _is_named(file, part):  # else another process removed it, unlocked, as a dead one's
            break
        file.close()
    try:
        with file:
            yield part, file
            if sys.platform != "win32":  # which cannot rename an open file
                rename_synced(part, path)
        if sys.platform == "win32":
            rename_synced(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new hidden folder next to `path` that takes its place at the end of the block.

    A rename cannot replace a folder that holds files, so the old one is first moved to
    `aside(path)`: at every moment either it or the new one is whole on the disk.
    """
    with new_folder(path) as part:
        yield part
        sync_folder(part)
        replaces = path.exists()
        if replaces:
            shutil.rmtree(aside(path), ignore_errors=True)
            os.rename(path, aside(path))
        try:
            os.rename(part, path)
        except OSError:
            if replaces:
                os.rename(aside(path), path)
            raise
    sync_folder(path.parent)
    shutil.rmtree(aside(path), ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder next to `path`, locked during the block and removed on an error.

    What killed writers of the same path left is removed first.
    """
    remove_dead_folders(path.parent, f".{glob.escape(path.name)}.*.part")
    while True:
        part = part_of(path)
        part.mkdir()
        descriptor = _lock_folder(part, block=True)
        # If it does not exist, another process took it for that of a dead one before it was locked.
        if part.exists():
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
    """Removes a folder; a kill leaves either all of it or a hidden remainder."""
    part = part_of(path)
    os.rename(path, part)
    shutil.rmtree(part, ignore_errors=True)


def remove_dead_folders(parent: Path, pattern: str) -> None:
    """Removes unfinished folders of killed writers; none where folders cannot be locked."""
    for part in parent.glob(pattern):
        descriptor = _lock_folder(part, block=False)
        if descriptor is not None:
            shutil.rmtree(part, ignore_errors=True)
            os.close(descriptor)


def _lock_folder(folder: Path, *, block: bool) -> int | None:
    """A descriptor that locks a folder until it is closed; None if that is not possible."""
    if sys.platform == "win32":
        return None
    import fcntl  # absent on Windows

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
    except OSError:  # another process holds it, or the file system cannot lock folders
        os.close(descriptor)
        return None
    return descriptor


def aside(path: Path) -> Path:
    """Where a folder is kept while another takes its place."""
    return path.with_name(f".{path.name}.old")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits for the folder's lock and holds it; the system drops the lock of a process that dies.

    Raises:
        RuntimeError: On Windows, which has no such locks.
        ValueError: The name of the lock is taken by a link, a FIFO or the like.
    """
    while True:
        with open_untrusted(folder / _LOCK, "ab") as file:
            lock_file(file, block=True)
            # If somebody removed the file in the meantime, its lock keeps nobody out.
            if not _is_named(file, folder / _LOCK):
                continue
            yield
            return


def _is_named(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is the one that the path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def create_part(folder: Path, name: str) -> tuple[FileIO, Path]:
    """A new hidden file to be renamed to `name`, locked while this process has it open.

    The caller holds the folder's lock, so that `remove_dead_parts` never sees it unlocked.
    """
    part = part_of(folder / name)
    file = part.open("xb", buffering=0)
    lock_file(file, block=True)
    return file, part


def remove_dead_parts(folder: Path, pattern: str = ".*.part") -> None:
    """Removes unfinished files whose writer is dead, or none if files cannot be locked.

    A process that begins one holds the folder's lock, or checks that the file still exists once it
    is locked.
    """
    for part in folder.glob(pattern):
        try:
            file = open_untrusted(part, "rb+")
        except (OSError, ValueError):  # gone by now, or not ours: a link, a folder
            continue
        with file, suppress(OSError):
            if lock_file(file, block=False):
                part.unlink(missing_ok=True)


def lock_file(file: IO[bytes], *, block: bool, shared: bool = False) -> bool:
    """Locks a file until it is closed. Returns whether it did, which with `block` is always true.

    Raises:
        RuntimeError: On Windows, which has no such locks.
    """
    if sys.platform == "win32":
        raise RuntimeError("writing here needs file locks, which Windows lacks.")
    import fcntl  # absent on Windows

    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | (0 if block else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


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
