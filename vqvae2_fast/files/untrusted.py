"""The one way to open untrusted files: data sets, checkpoints, stores, sample folders.

A file is opened once, and what was checked is what is read. It has to be a regular file: opening a
FIFO can block for ever, and opening a device can have effects. Where a folder is given, links may
not lead out of it. No more is read than a bound, and compressed files are read as streams with a
bound on what comes out. Every error names the file.

This protects from what lies in a folder, not from a process that changes the folder meanwhile.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Literal

from vqvae2_fast.files.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    Path = str | os.PathLike[str]

__all__ = [
    "MAX_RATIO",
    "NotRegularError",
    "UntrustedFileError",
    "check_regular",
    "decompressed",
    "open_untrusted",
    "read_untrusted",
]

# Decompressed bytes for each compressed one, beyond the first 64 MiB. Drawings and masks reach 50,
# deflate's limit is 1,032.
MAX_RATIO = 100
FREE_BYTES = 64 * 2**20
_STEP = 2**20  # bytes read at a time if the size is not known

_FLAGS = {
    "rb": os.O_RDONLY,
    "rb+": os.O_RDWR,
    "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT,
}
# Absent on Windows, which has neither FIFOs among its files nor links without rights.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_ALWAYS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


class UntrustedFileError(ValueError):
    """A file that is refused, or found to be damaged, when it is opened; the message names it."""


class NotRegularError(UntrustedFileError):
    """A FIFO, a socket, a device or a folder where a regular file is expected."""


def open_untrusted(
    path: Path,
    mode: Literal["rb", "rb+", "ab"] = "rb",
    *,
    inside: Path | None = None,
    max_bytes: int | None = None,
    buffering: int = -1,
) -> IO[bytes]:
    """Opens a regular file.

    Args:
        mode: "rb" to read; "rb+" to change the file; "ab" to append to it, or make it. Links are
            followed for reading only.
        inside: A folder that the file has to be in once all links are followed.
        max_bytes: The largest file that is accepted.
        buffering: As for `open`.

    Raises:
        OSError: There is no such file, it may not be read, or its links form a loop.
        UntrustedFileError: It is not a regular file, lies outside the folder, or is too large; or
            its name cannot be that of a file.
    """
    name = _checked_name(path)
    target = os.fspath(path) if inside is None else _inside(path, inside)
    # Because of this check a device is not even opened; the check of the open file is the one that
    # counts.
    if mode == "rb" or os.path.lexists(target):
        check_regular(target, links=mode == "rb")
    no_link = _NO_LINK if mode != "rb" or inside is not None else 0
    descriptor = os.open(target, _FLAGS[mode] | no_link | _ALWAYS, 0o666)
    try:
        status = os.fstat(descriptor)
        _require_regular(name, status.st_mode)
        if max_bytes is not None and status.st_size > max_bytes:
            raise _too_large(name, max_bytes)
        if mode == "rb" and buffering == -1:
            return _Reader(io.FileIO(descriptor), status.st_size)
        return os.fdopen(descriptor, mode, buffering)
    except BaseException:
        os.close(descriptor)
        raise


class _Reader(io.BufferedReader):
    """A file that allocates only what it holds for a read, not what was asked for.

    Readers of formats ask for as much as a length in the file says, which may be 2 GiB.
    """

    def __init__(self, raw: io.FileIO, size: int) -> None:
        super().__init__(raw)
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _STEP:
            # What was appended since then is read step by step.
            size = min(size, max(0, self._size - self.tell()) + _STEP)
        return super().read(size)


def read_untrusted(path: Path, max_bytes: int, *, inside: Path | None = None) -> bytes:
    """The content of a regular file of at most `max_bytes`; arguments and errors as above."""
    with open_untrusted(path, inside=inside, max_bytes=max_bytes) as file:
        content = file.read(os.fstat(file.fileno()).st_size)
        # The size may be a lie, as in /proc, and the file may have grown. Python allocates all that
        # a read asks for.
        while part := file.read(_STEP):
            content += part
            if len(content) > max_bytes:
                raise _too_large(printable(path), max_bytes)
    return content


def check_regular(path: Path, *, links: bool = True) -> os.stat_result:
    """The status of a regular file, which is not opened.

    Raises:
        OSError: There is no such file, or it cannot be read.
        UntrustedFileError: It is not a regular file, or, without `links`, it is a link.
    """
    name = _checked_name(path)
    status = os.stat(path, follow_symlinks=links)
    _require_regular(name, status.st_mode)
    return status


@contextmanager
def decompressed(
    file: IO[bytes], path: Path, max_bytes: int, max_ratio: int = MAX_RATIO
) -> Iterator[IO[bytes]]:
    """What a file holds, decompressed on the way if it begins as gzip or bzip2 data.

    Args:
        file: At its beginning; seekable.
        path: For messages.
        max_bytes: The most that may come out.
        max_ratio: Bytes out for each byte in, beyond the first 64 MiB.

    Raises:
        UntrustedFileError: xz data, whose reader may need 4 GiB of memory; on reading, damaged
            data or more of it than the bounds.
    """
    head = file.read(6)
    file.seek(0)
    stream: IO[bytes]
    if head[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[assignment]
    elif head[:3] == b"BZh":
        stream = bz2.BZ2File(file)
    elif head == b"\xfd7zXZ\x00":
        raise UntrustedFileError(
            f"{printable(path)} is compressed by xz; decompress it first (unxz)."
        )
    else:
        yield file
        return
    with stream:
        yield io.BufferedReader(_Bounded(stream, file, printable(path), max_bytes, max_ratio))


class _Bounded(io.RawIOBase):
    """The output of a decompressor, up to bounds on its size and on its ratio to the input."""

    def __init__(
        self, stream: IO[bytes], source: IO[bytes], name: str, max_bytes: int, max_ratio: int
    ) -> None:
        self._stream, self._source, self._name = stream, source, name
        self._max_bytes, self._max_ratio = max_bytes, max_ratio
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        try:
            content = self._stream.read(min(len(view), _STEP))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UntrustedFileError(f"{self._name} is damaged ({error}).") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise UntrustedFileError(f"{self._name} is damaged ({error}).") from error
        self._given += len(content)
        if self._given > self._max_bytes:
            raise UntrustedFileError(
                f"{self._name} holds more than {self._max_bytes} bytes decompressed."
            )
        if self._given > FREE_BYTES + self._max_ratio * self._source.tell():
            raise UntrustedFileError(
                f"{self._name} decompresses to more than {self._max_ratio} times its size; if it "
                "is what you expect, decompress it first (gunzip or bunzip2)."
            )
        view[: len(content)] = content
        return len(content)


def _checked_name(path: Path) -> str:
    """The path for messages, if the system can have a file of this name."""
    name = printable(path)
    try:
        fits = b"\0" not in os.fsencode(path)
    except UnicodeError:
        fits = False
    if not fits:
        raise UntrustedFileError(f"{name} cannot be the name of a file here.")
    return name


def _too_large(name: str, max_bytes: int) -> UntrustedFileError:
    return UntrustedFileError(f"{name} is larger than {max_bytes} bytes, the most that is read.")


def _inside(path: Path, folder: Path) -> str:
    """The file that a path names once all links are followed, which lies in the folder."""
    real, root = os.path.realpath(path, strict=True), os.path.realpath(folder, strict=True)
    if os.path.commonpath([real, root]) != root:
        raise UntrustedFileError(
            f"{printable(path)} leads out of {printable(folder)}, which is not followed; copy the "
            "file there."
        )
    return real


def _require_regular(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise NotRegularError(f"{name} is {kind}, not a regular file.")
