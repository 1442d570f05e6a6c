"""The checksums of a checkpoint's files, so that a flipped bit is found before it becomes a weight.

files.json holds the size and CRC32 of each other file in its folder, except shards. Shards are
written by several processes; their sizes and checksums are in shards.json, and those of shards.json
are in files.json.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from safetensors import safe_open

from vqvae2_fast.checkpoints.files import (
    DamagedError,
    check_regular_file,
    read_json,
    reading_safetensors,
    tensor_headers,
    write_json,
)
from vqvae2_fast.files.printable import short
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

__all__ = [
    "CALIBRATION",
    "SHARDS",
    "check_sums",
    "shard_files",
    "shard_name",
    "sums_of",
    "write_index",
    "write_sums",
]

SUMS, SHARDS, CALIBRATION = "files.json", "shards.json", "calibration.safetensors"
_NAMES = (
    "config.json",
    SHARDS,
    "model.safetensors",
    CALIBRATION,
    "average.safetensors",
    "optimizer.safetensors",
    "companion.safetensors",
    "state.json",
)
_CHUNK = 2**20
_MOST_SHARDS = 10_000


def sums_of(path: Path) -> dict[str, int]:
    """Size and CRC32 of a file."""
    return {"bytes": check_regular_file(path), "crc32": _crc32(path)}


def write_sums(folder: Path) -> None:
    """Write files.json for all files in a folder but shards."""
    names = sorted(path.name for path in folder.iterdir() if path.name in _NAMES)
    write_json(folder / SUMS, {name: sums_of(folder / name) for name in names})


def check_sums(folder: Path, names: Collection[str] = _NAMES) -> None:
    """Compare the files of a checkpoint that `names` lists with their checksums in files.json.

    A folder without files.json (made by another program) has nothing to compare, but shards are
    always compared with shards.json.

    Raises:
        DamagedError: If a file is missing, was added, or is not the one that was written.
    """
    if (folder / SUMS).exists():
        _check_listed(folder, names)
    if SHARDS in names and (folder / SHARDS).exists():
        _check_shards(folder)


def _check_listed(folder: Path, names: Collection[str]) -> None:
    listed = read_json(folder / SUMS)
    for name in names:
        path = folder / name
        if name not in listed:
            if path.exists():
                raise DamagedError(f"{folder} is damaged: {SUMS} does not know {name}.")
            continue
        if difference := _difference(path, listed[name], SUMS):
            raise DamagedError(
                f"{path} is damaged: {difference}. (If you changed the file yourself, delete "
                f"{folder / SUMS}.)"
            )


def _difference(path: Path, entry: object, source: str) -> str:
    """How a file differs from its entry in a list of checksums; "" if it does not."""
    for key in ("bytes", "crc32"):
        value = check_regular_file(path) if key == "bytes" else _crc32(path)
        expected = _number(entry, key)
        if value != expected:
            return f"{key} is {value}, {source} says {expected}"
    return ""


def _number(entry: object, key: str) -> int | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if type(value) is int else None


def _crc32(path: Path) -> int:
    value = 0
    with open_untrusted(path) as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def shard_name(number: int, count: int) -> str:
    """The name of the shard that a process writes."""
    return f"shard-{number + 1:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, save: str, sums: Sequence[dict[str, int]]) -> None:
    """Write shards.json: what names this save, as in the shards' headers, and their checksums."""
    write_json(folder / SHARDS, {"save": save, "shards": list(sums)})


def shard_files(folder: Path) -> list[Path]:
    """The shards of a checkpoint in the order of their rows, as shards.json counts them."""
    count = len(_index(folder)[1])
    return [folder / shard_name(number, count) for number in range(count)]


def _index(folder: Path) -> tuple[object, list[object]]:
    index = read_json(folder / SHARDS)
    shards = index.get("shards")
    if not isinstance(shards, list) or not 1 <= len(shards) <= _MOST_SHARDS:
        raise DamagedError(f"{folder / SHARDS}: expected a list of 1 to {_MOST_SHARDS} shards.")
    return index.get("save"), shards


def _check_shards(folder: Path) -> None:
    """Raises DamagedError, with all that is damaged, unless every shard is that of shards.json."""
    save, shards = _index(folder)
    problems = []
    for number, (path, entry) in enumerate(zip(shard_files(folder), shards, strict=True)):
        if not path.exists():
            problems.append(f"{path.name} is missing")
        elif difference := _difference(path, entry, SHARDS):
            problems.append(f"{path.name} {_what_it_is(path, save, number) or difference}")
    if problems:
        whole = len(shards) - len(problems)
        raise DamagedError(
            f"{folder} is damaged: {'; '.join(problems)}. {whole} of {len(shards)} shards "
            "are whole, each a safetensors file of its own rows."
        )


def _what_it_is(path: Path, save: object, number: int) -> str:
    """What a shard says of itself, if that is not what its name says."""
    try:
        tensor_headers(path)
        with reading_safetensors(path), safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except DamagedError:
        return ""
    if said.get("save") != save:
        return "is of another save"
    if said.get("shard") != str(number + 1):
        return f"is shard {short(said.get('shard', ''))} of this save"
    return ""
