"""The tensors of a checkpoint, in one file for each part or in one shard for each process.

Parts are `model`, `average`, `optimizer` and `companion`. Whole, a part is PART.safetensors.
Sharded, its tensors are PART.NAME in the shards: each has the rows (of the first dimension) of its
process, in the order of the processes; what is not sharded is in the first alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from safetensors import safe_open

from vqvae2_fast.checkpoints.files import (
    DamagedError,
    check_finite_tensors,
    read_tensors,
    reading_safetensors,
    tensor_headers,
    write_copies,
)
from vqvae2_fast.checkpoints.sums import SHARDS, shard_files, shard_name, sums_of
from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "has_part",
    "new_save",
    "part_headers",
    "part_path",
    "read_part",
    "rows_of",
    "write_shard",
]

_Header = tuple[str, tuple[int, ...]]


def new_save() -> str:
    """A name for one save, that tells its shards from those of others."""
    return uuid4().hex


def rows_of(rows: int, rank: int, count: int) -> range:
    """The rows of a tensor that one of several processes holds, as FSDP2 shares them out."""
    most = -(-rows // count)
    return range(min(rank * most, rows), min((rank + 1) * most, rows))


def write_shard(
    folder: Path, number: int, count: int, save: str, tensors: dict[str, Tensor]
) -> dict[str, int]:
    """Write one process's shard, tensors by PART.NAME as `host_copies` gives them; returns its
    checksums."""
    path = folder / shard_name(number, count)
    write_copies(tensors, path, {"save": save, "shard": str(number + 1)})
    return sums_of(path)


def part_path(folder: Path, part: str) -> Path:
    """What an error message about a part names: its file, or shards.json."""
    return folder / (SHARDS if _is_sharded(folder) else f"{part}.safetensors")


def has_part(folder: Path, part: str) -> bool:
    """Whether a checkpoint has such a part."""
    if _is_sharded(folder):
        return bool(part_headers(folder, part))
    return (folder / f"{part}.safetensors").exists()


def part_headers(folder: Path, part: str) -> dict[str, _Header]:
    """Type and shape of each tensor of a part, without reading the tensors.

    Raises:
        DamagedError: If a file is damaged, or shards do not fit one another.
    """
    if not _is_sharded(folder):
        return tensor_headers(folder / f"{part}.safetensors")
    found: dict[str, _Header] = {}
    for path in shard_files(folder):
        for key, (kind, shape) in tensor_headers(path).items():
            owner, _, name = key.partition(".")
            if owner != part:
                continue
            before, rows = found.get(name, (kind, (0, *shape[1:])))
            unlike = before != kind or rows[1:] != shape[1:]
            if unlike or (name in found and not (rows and shape)):
                raise DamagedError(f"{path}: {short(key)} does not fit that of other shards.")
            found[name] = kind, (rows[0] + shape[0], *rows[1:]) if shape else ()
    return found


def read_part(
    folder: Path, part: str, *, check_finite: bool = True, share: tuple[int, int] = (0, 1)
) -> dict[str, Tensor]:
    """The tensors of a part.

    Args:
        share: A process's number and how many there are: only its rows are read, see `rows_of`.

    Raises:
        DamagedError: As `part_headers`.
        ValueError: With `check_finite`, if one of the numbers is NaN or infinite.
    """
    if not _is_sharded(folder) and share == (0, 1):
        return read_tensors(folder / f"{part}.safetensors", check_finite=check_finite)
    headers, sharded = part_headers(folder, part), _is_sharded(folder)
    pieces: dict[str, list[Tensor]] = {name: [] for name in headers}
    start = dict.fromkeys(headers, 0)  # rows in the files before
    for path in shard_files(folder) if sharded else [part_path(folder, part)]:
        with reading_safetensors(path), safe_open(path, "pt") as file:
            here = set(file.keys())
            for name, (_, shape) in headers.items():
                key = f"{part}.{name}" if sharded else name
                if key not in here:
                    continue
                if not shape:
                    pieces[name].append(file.get_tensor(key))
                    continue
                own, piece = rows_of(shape[0], *share), file.get_slice(key)
                first, rows = start[name], piece.get_shape()[0]
                start[name] += rows
                begin, end = max(own.start - first, 0), min(own.stop - first, rows)
                pieces[name].append(piece[begin : max(begin, end)])
    found = {
        name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in pieces.items()
    }
    if check_finite:
        check_finite_tensors(found, part_path(folder, part))
    return found


def _is_sharded(folder: Path) -> bool:
    return (folder / SHARDS).exists()
