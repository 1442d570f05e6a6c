"""The files of a checkpoint: written whole, read with distrust.

Sizes are checked before anything is read. No reader executes what a file holds, or allocates what
it merely claims to hold.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from vqvae2_fast.files.durable import explained, replace_file, replaced_folder
from vqvae2_fast.files.json_file import MAX_TEXT_BYTES, read_object
from vqvae2_fast.files.mapped import check_utf8
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import check_regular, open_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "DamagedError",
    "check_finite_tensors",
    "check_regular_file",
    "host_copies",
    "link_folder",
    "read_json",
    "read_tensors",
    "reading_safetensors",
    "replacing",
    "tensor_headers",
    "write_copies",
    "write_json",
    "write_tensors",
]

_SUFFIXES = (".json", ".md", ".safetensors")  # of the files of a checkpoint
# How a ZIP archive and pickles since protocol 2 begin. Read as the length of a header, almost all
# of these are far too large.
_PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))


class DamagedError(ValueError):
    """A file of a checkpoint is missing, cut off or altered."""


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError if the disk is full."""
    write_copies(host_copies(tensors), path)


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors can write: contiguous tensors in the host's memory that share none."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def write_copies(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """`write_tensors` for what `host_copies` gave, with texts in the file's header."""
    path.touch()
    mode = path.stat().st_mode  # by the umask; safetensors' own are private
    try:
        save_file(tensors, path, metadata)
        path.chmod(mode)
    except SafetensorError as error:
        system = re.search(r"os error (\d+)", str(error))
        if system is None:
            raise
        code = int(system[1])
        raise OSError(code, os.strerror(code), str(path)) from error
    _sync(path)


def tensor_headers(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in a file, without reading the tensors.

    Raises:
        DamagedError: If it is not a safetensors file, or its header claims more than there is.
    """
    check_regular_file(path)
    with open_untrusted(path) as file:
        start = file.read(8)
    size = int.from_bytes(start, "little")
    if size > min(MAX_TEXT_BYTES, path.stat().st_size):
        if start.startswith(_PICKLES):
            raise DamagedError(
                f"{path} is not a safetensors file but a pickle, alone or in an archive of "
                "torch.save. Pickles can run code and are never read here."
            )
        raise DamagedError(
            f"{path} is damaged or not a safetensors file: its first 8 bytes say that its "
            f"header has {size} bytes, of a file of {path.stat().st_size} (at most "
            f"{MAX_TEXT_BYTES} are read)."
        )
    with reading_safetensors(path), safe_open(path, "pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def read_tensors(path: Path, *, check_finite: bool = True) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        DamagedError: As `tensor_headers`.
        ValueError: With `check_finite`, if one of the numbers is NaN or infinite.
    """
    tensor_headers(path)
    with reading_safetensors(path):
        tensors = load_file(path)
    if check_finite:
        check_finite_tensors(tensors, path)
    return tensors


def check_finite_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ValueError if one of the numbers that were read from a file is NaN or infinite."""
    for name, tensor in tensors.items():
        # A sum takes one pass and no copy. It is finite unless a number is not, or it overflows.
        if tensor.is_floating_point() and not tensor.sum().isfinite():
            count = int((~tensor.isfinite()).sum())
            if count:
                raise ValueError(
                    f"{path}: expected finite numbers, got {count} of {tensor.numel()} in "
                    f"{short(name)} that are NaN or infinite. Load another checkpoint, or call "
                    "load(..., check_finite=False)."
                )


@contextmanager
def reading_safetensors(path: Path) -> Iterator[None]:
    """Raises the errors of safetensors as DamagedError; ValueError if the path is not UTF-8."""
    check_utf8(path)
    try:
        yield
    except (SafetensorError, ValueError, OverflowError) as error:
        raise DamagedError(
            f"{path} is damaged or not a safetensors file: {short(error)}."
        ) from error
    except MemoryError as error:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, for which this process has no memory: "
            f"{short(error)}."
        ) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DamagedError if there is none."""
    check_regular_file(path)
    try:
        return read_object(path)
    except ValueError as error:
        raise DamagedError(f"{error}") from error


def check_regular_file(path: Path) -> int:
    """The size of a file of a checkpoint."""
    try:
        return check_regular(path).st_size
    except FileNotFoundError:
        raise DamagedError(f"{path.parent} is damaged: {path.name} is missing.") from None
    except (OSError, ValueError) as error:  # no access, a loop of links, a folder, a FIFO, ...
        raise DamagedError(f"{path.parent} is damaged: {error}") from error


def check_replaceable(path: Path) -> None:
    """Raises ValueError unless a checkpoint may take the place of what is at `path`: nothing, an
    empty folder, or a checkpoint with nothing beside its own files."""
    if path.name in ("", ".."):
        raise ValueError(
            f"expected the name of a folder, got {str(path)!r}. A save puts a new folder in "
            "the place of the old one, which it cannot do where a program works."
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        header = read_object(path / "config.json", inside=path)
    except (OSError, ValueError):
        header = {}
    if not {"kind", "version"} <= header.keys():
        raise ValueError(
            f"{path} exists and is not a checkpoint, so it was left unchanged. Name another path."
        )
    for entry in path.iterdir():
        if not (entry.suffix in _SUFFIXES or (entry / "config.json").is_file()):
            raise ValueError(
                f"{path} is a checkpoint and also holds {printable(entry.name)}, so it was "
                "left unchanged. Move that, or name another path."
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder next to `path` that takes its place when the block ends without an error.

    If `path` is a link to a folder, the folder is replaced and the link stays.

    Raises:
        ValueError: If `path` exists and is not a checkpoint, which is left unchanged.
        OSError: If it cannot be written; a checkpoint that was there is unchanged.
    """
    check_replaceable(path)
    path = path.resolve() if path.is_symlink() else path
    with explained(f"cannot write {path}", "What was saved before is unchanged"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(path) as folder:
            yield folder


def link_folder(source: Path, path: Path) -> None:
    """Give a checkpoint a second name: its files are linked, or copied where links cannot be."""
    with replacing(path) as folder:
        for file in source.iterdir():
            try:
                os.link(file, folder / file.name)
            except OSError:  # a file system without links
                shutil.copyfile(file, folder / file.name)
                _sync(folder / file.name)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
