"""Files of `torch.save`, read without running anything of them.

torch's safe loader reads tensors, plain containers, numbers and strings. The arguments of a script,
which such files often hold next to the weights, may also be paths and NumPy numbers: the names that
a file has for these stand for replacements that return strings and numbers. Anything else is
refused.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_torch_file"]

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
# What torch, zipfile and NumPy raise on files that tools/fuzz damages.
_DAMAGED = (
    EOFError,
    RuntimeError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    OSError,
    zipfile.BadZipFile,
)


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is damaged, or holds anything but tensors, plain containers, numbers,
            strings, paths and an `argparse.Namespace`. Nothing of it was run.
    """
    with open_untrusted(path) as file:
        try:
            return _load(file)
        except pickle.UnpicklingError as error:
            # torch's own message advises switching its safe loading off.
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = f"asks for {named[1]}" if named else "is damaged or not a file of torch.save"
            raise ValueError(
                f"{printable(path)} is refused, and nothing of it was run: it {reason}."
            ) from error
        except _DAMAGED as error:
            first = str(error).partition("\n")[0].partition(". ")[0]
            raise ValueError(
                f"{printable(path)} is damaged or not a file of torch.save "
                f"({type(error).__name__}: {short(first) or 'no more is known'})."
            ) from error


def _load(file: IO[bytes]) -> Any:
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type for member in archive.infolist()):
                raise ValueError("it holds compressed records, which torch.save never makes")
    file.seek(0)
    with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles of newer protocols: they load or they fail
        return torch.load(file, map_location="cpu", weights_only=True)


def _path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


class _Dtype:
    """A NumPy dtype as a file names it."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: object, raw: object = None) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.name not in _NUMBERS:
        raise ValueError("a NumPy value in it is not a number")
    if isinstance(raw, str):  # as protocol 2, which torch uses, holds bytes
        raw = raw.encode("latin1")
    if not isinstance(raw, bytes) or len(raw) != int(dtype.name[1:]):
        raise ValueError("a NumPy number in it has another size than its type")
    return np.frombuffer(raw, dtype.order + dtype.name)[0].item()


_STAND_INS: list[Any] = [
    argparse.Namespace,
    *(
        (_path, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
