"""Reads untrusted tar files as streams, from beginning to end.

The package `webdataset` reads such files too, but does not notice that one was cut off, cuts file
names at `#` and `?` as in a URL, and holds every member in memory, decompressed, whatever its size.
"""

from __future__ import annotations

import tarfile
from typing import IO, TYPE_CHECKING, NoReturn

from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import UntrustedFileError, decompressed, open_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["MAX_MEMBER_BYTES", "members_of_tar"]

MAX_MEMBER_BYTES = 256 * 2**20  # an image may be as large uncompressed
_MAX_ARCHIVE_BYTES = 2**44
_MAX_HEADER_BYTES = 2**20  # of what tar calls extended headers
_MAX_NAME = 4096  # characters
_SKIP_BYTES = 2**20  # read at a time when a member is skipped
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def members_of_tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Names of the regular files in a tar file, plain or compressed by gzip or bzip2, in order.

    Args:
        wanted: Whether the content of this name is wanted; other contents are not read and are
            None.

    Raises:
        OSError: There is no such file, ...
        ValueError: It is not a tar file, damaged or cut, or beyond a limit.
    """
    with open_untrusted(path) as file, decompressed(file, path, _MAX_ARCHIVE_BYTES) as stream:
        forward = _Forward(stream)
        try:
            with tarfile.TarFile(fileobj=forward, tarinfo=_Member) as archive:  # type: ignore[arg-type]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # would hold all of them
                    if member.isreg():
                        content = forward.content_of(member) if wanted(member.name) else None
                        yield member.name, content
        except UntrustedFileError:
            raise
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{printable(path)} is damaged or not a tar file ({short(error, 200)})."
            ) from error


class _Forward:
    """The interface of a file that tarfile needs, read forwards only."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._at = stream, 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._at += len(content)
        return content

    def seek(self, at: int) -> None:
        if at < self._at:
            raise tarfile.ReadError("members overlap")
        while self._at < at:
            if not self.read(min(at - self._at, _SKIP_BYTES)):
                raise tarfile.ReadError("it was cut within a member")

    def content_of(self, member: tarfile.TarInfo) -> bytes:
        if member.size > MAX_MEMBER_BYTES:
            raise tarfile.ReadError(
                f"{short(member.name)} has {member.size} bytes; at most {MAX_MEMBER_BYTES} are read"
            )
        self.seek(member.offset_data)
        content = self.read(member.size)
        if len(content) != member.size:
            raise tarfile.ReadError(f"it was cut within {short(member.name)}")
        return content


class _Member(tarfile.TarInfo):
    """A member whose header has to be complete: tarfile takes an incomplete one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # 512 zeros: the mark of the end
            raise
        except tarfile.HeaderError as error:
            whole = len(buf) == tarfile.BLOCKSIZE
            what = str(error) if whole else "it was cut: the mark of its end is missing"
            raise tarfile.ReadError(what) from error
        if member.size < 0:
            raise tarfile.ReadError(f"{short(member.name)} has {member.size} bytes")
        if member.type in _EXTENDED and member.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {member.size} bytes")
        return member

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            member = super()._proc_member(archive)  # type: ignore[misc]
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        # Extended headers may override what the plain one says.
        if member.size < 0 or len(member.name) > _MAX_NAME:
            raise tarfile.ReadError(f"{short(member.name)} is no member's name or size")
        return member

    def _no_holes(self, *_: object) -> NoReturn:
        raise tarfile.ReadError(
            f"{short(self.name)} is stored as a sparse file, whose size nothing bounds"
        )

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_holes
