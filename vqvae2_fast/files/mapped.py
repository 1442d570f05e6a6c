"""Files mapped into memory, which may be truncated while they are in use.

Reading a mapped page beyond the end of its file kills the process (SIGBUS). So the size of the file
is checked before each use, and a file that was truncated before raises an error. One that is
truncated while pages are being read still kills the process; only reading without a map would
prevent that, at several times the cost. What is written into the file may appear in the map.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import check_regular

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["MappedFile", "check_utf8"]


def check_utf8(path: Path) -> None:
    """Raises ValueError unless a path is UTF-8; PyTorch and safetensors can map no other file."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{printable(path)} is not UTF-8, and cannot be mapped; rename the folder."
        ) from error


class MappedFile:
    """A regular file of a known size, mapped. Writing to its bytes does not reach the disk.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is not a regular file, has another size, or its path is not UTF-8.
    """

    def __init__(self, path: Path, size: int) -> None:
        check_utf8(path)
        self.path, self.size = path, size
        self._status = check_regular(path, links=False)
        self._require_size(self._status)
        # Unlike numpy's, torch's map keeps no file open: a store may have many shards.
        self._bytes = (
            torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            if size
            else torch.zeros(0, dtype=torch.uint8, device="cpu")
        )

    def bytes(self) -> Tensor:
        """uint8 `[size]`, which should be read at once, since the file may be truncated later.

        Raises:
            ValueError: The file was truncated.
        """
        try:
            status = os.stat(self.path)
        except FileNotFoundError:  # the map outlives the name
            return self._bytes
        if os.path.samestat(status, self._status):  # otherwise another file has taken the name
            self._require_size(status)
        return self._bytes

    def _require_size(self, status: os.stat_result) -> None:
        if status.st_size != self.size:
            raise ValueError(
                f"{printable(self.path)} has {status.st_size} bytes, expected {self.size}; it was "
                "cut or replaced."
            )
