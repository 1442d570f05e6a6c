"""The packed store of code maps on disk: records, shards and the manifest.

A store is a folder with manifest.json and shards. A shard is records of one fixed length, so that
record i lies at i · record_bytes and a reader may map the file and take any rows. A record is the
levels coarse to fine, each map row by row at `bits` bits a code, least significant bit first,
filled up to a whole byte with zeros; then the label as little-endian int32, -1 for none. A shard
counts once the manifest, which is replaced by renaming, names it.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "CodeLayout",
    "Manifest",
    "Shard",
    "append_shard",
    "create",
    "read_manifest",
    "read_shard",
]

VERSION = 1
MAX_EMBEDDINGS = 2**24  # a code and its bit offset (up to 7) are then read from 4 bytes
SHARD_BYTES = 64 * 2**20
_MANIFEST = "manifest.json"
_CHUNK_CODES = 2**18  # codes packed at a time: each bit is an int32 on the way, 8-24 MiB


@dataclass(frozen=True)
class CodeLayout:
    """What a record looks like.

    Args:
        num_embeddings: K, codes of every level.
        level_sizes: (height, width) of each map, coarse to fine.
    """

    num_embeddings: int
    level_sizes: tuple[tuple[int, int], ...]

    @property
    def bits(self) -> int:
        """Bits a code: max(1, ⌈log₂ K⌉)."""
        return max(1, (self.num_embeddings - 1).bit_length())

    @property
    def map_bytes(self) -> tuple[int, ...]:
        """Bytes of each map in a record."""
        return tuple(-(-height * width * self.bits // 8) for height, width in self.level_sizes)

    @property
    def record_bytes(self) -> int:
        return sum(self.map_bytes) + 4  # the label

    def pack(self, codes: list[Tensor], labels: Tensor) -> np.ndarray:
        """Records of maps `[n, h, w]` (any integer type) and labels `[n]`: uint8 `[n, bytes]`."""
        count = len(labels)
        records = np.zeros((count, self.record_bytes), dtype=np.uint8)
        start = 0
        for level, size in zip(codes, self.map_bytes, strict=True):
            flat = level.reshape(count, -1).numpy().astype(np.int32)  # [n, h * w]
            step = max(1, _CHUNK_CODES // flat.shape[1])
            for first in range(0, count, step):
                part = slice(first, first + step)
                bits = (flat[part, :, None] >> np.arange(self.bits, dtype=np.int32)) & 1
                spread = bits.astype(np.uint8).reshape(len(bits), -1)  # [n, h * w * bits]
                records[part, start : start + size] = np.packbits(spread, axis=1, bitorder="little")
            start += size
        records[:, start:] = labels.numpy().astype("<i4").view(np.uint8).reshape(count, 4)
        return records

    def unpack(self, records: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """The inverse of `pack`: maps in the storage type, labels int64; values unchecked."""
        count = len(records)
        codes = []
        start = 0
        for (height, width), size in zip(self.level_sizes, self.map_bytes, strict=True):
            first_bit = np.arange(height * width) * self.bits
            byte, shift = first_bit >> 3, (first_bit & 7).astype(np.uint32)
            flat = np.zeros((count, height * width), dtype=storage_numpy(self.num_embeddings))
            step = max(1, _CHUNK_CODES // (height * width))
            for first in range(0, count, step):
                part = records[first : first + step, start : start + size]
                # Three bytes of zeros, so that a code's four bytes always exist.
                padded = np.pad(part, ((0, 0), (0, 3))).astype(np.uint32)
                word = padded[:, byte]  # [n, h * w]
                for offset in range(1, (self.bits + 14) // 8):  # bytes that bits + 7 can reach
                    word |= padded[:, byte + offset] << np.uint32(8 * offset)
                flat[first : first + step] = (word >> shift) & np.uint32((1 << self.bits) - 1)
            codes.append(torch.from_numpy(flat).view(count, height, width))  # [n, h, w]
            start += size
        labels = np.ascontiguousarray(records[:, start:]).view("<i4").reshape(count)
        return codes, torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class Shard:
    """Records of one file; crc32 is of its bytes."""

    name: str
    records: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    layout: CodeLayout
    class_names: tuple[str, ...]
    checkpoint_hash: str
    shards: tuple[Shard, ...] = ()


def storage_numpy(num_embeddings: int) -> type[np.signedinteger]:
    """The smaller of int16 and int32 that holds all codes."""
    return np.int16 if num_embeddings <= 2**15 else np.int32


def create(folder: Path, manifest: Manifest) -> None:
    """Makes the folder and an empty store in it.

    Raises:
        ValueError: The folder holds a store already.
    """
    if (folder / _MANIFEST).exists():
        raise ValueError(
            f"CodeDataset.save: {folder} holds a code store already; remove it or choose "
            "another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_manifest(folder, manifest)


def append_shard(folder: Path, manifest: Manifest, records: np.ndarray) -> Manifest:
    """Writes one more shard, then the manifest that names it."""
    name = f"shard-{len(manifest.shards):05d}.bin"
    content = records.tobytes()
    _write_synced(folder / name, content)
    shard = Shard(name, len(records), zlib.crc32(content))
    manifest = replace(manifest, shards=(*manifest.shards, shard))
    _write_manifest(folder, manifest)
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(
        {
            "kind": "code_store",
            "version": VERSION,
            "num_embeddings": manifest.layout.num_embeddings,
            "level_sizes": manifest.layout.level_sizes,
            "bits": manifest.layout.bits,
            "class_names": manifest.class_names,
            "checkpoint_hash": manifest.checkpoint_hash,
            "records": sum(shard.records for shard in manifest.shards),
            "shards": [asdict(shard) for shard in manifest.shards],
        },
        indent=1,
    )
    fresh = folder / (_MANIFEST + ".new")
    _write_synced(fresh, text.encode("utf-8"))
    os.replace(fresh, folder / _MANIFEST)


def _write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits for the disk, so that the manifest never names what is not there."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`, every field checked.

    Raises:
        ValueError: No store there, a newer version, a damaged manifest, or a shard name that is
            not a plain file name.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise ValueError(f"CodeDataset.load: no code store at {folder}: {path} is missing.")

    def require(ok: bool, what: str) -> None:
        if not ok:
            raise ValueError(f"CodeDataset.load: {path} is damaged: {what}.")

    def count(value: object, least: int) -> bool:
        return type(value) is int and value >= least

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"CodeDataset.load: {path} is damaged: not JSON ({error}).") from error
    require(isinstance(raw, dict) and raw.get("kind") == "code_store", "kind is not code_store")
    version = raw.get("version")
    require(count(version, 1), f"version is {version!r}")
    if version > VERSION:
        raise ValueError(
            f"CodeDataset.load: {path} has version {version}, this release reads up to {VERSION}; "
            "install a newer vqvae2_fast."
        )
    k = raw.get("num_embeddings")
    require(count(k, 1) and k <= MAX_EMBEDDINGS, f"num_embeddings is {k!r}")
    sizes = raw.get("level_sizes")
    require(
        isinstance(sizes, list)
        and len(sizes) > 0
        and all(isinstance(s, list) and len(s) == 2 and all(count(n, 1) for n in s) for s in sizes),
        "level_sizes must be pairs of height and width",
    )
    layout = CodeLayout(k, tuple((height, width) for height, width in sizes))
    bits = raw.get("bits")
    require(bits == layout.bits, f"bits is {bits!r}, num_embeddings {k} needs {layout.bits}")
    names, digest = raw.get("class_names"), raw.get("checkpoint_hash")
    require(
        isinstance(names, list) and all(isinstance(name, str) for name in names),
        "class_names must be strings",
    )
    require(isinstance(digest, str), "checkpoint_hash must be a string")
    entries = raw.get("shards")
    require(isinstance(entries, list), "shards must be a list")
    shards = []
    for entry in entries:
        require(isinstance(entry, dict) and set(entry) == {"name", "records", "crc32"},
                "a shard needs name, records and crc32")  # fmt: skip
        name = entry["name"]
        plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name)
        require(bool(plain), f"shard name {name!r} is not a plain file name")
        require(count(entry["records"], 1), f"shard {name} has records {entry['records']!r}")
        require(count(entry["crc32"], 0), f"shard {name} has crc32 {entry['crc32']!r}")
        shards.append(Shard(name, entry["records"], entry["crc32"]))
    require(len({shard.name for shard in shards}) == len(shards), "a shard is named twice")
    total = sum(shard.records for shard in shards)
    require(raw.get("records") == total, f"records is {raw.get('records')!r}, shards hold {total}")
    return Manifest(layout, tuple(names), digest, tuple(shards))


def read_shard(folder: Path, layout: CodeLayout, shard: Shard) -> np.ndarray:
    """Records uint8 `[n, record_bytes]` of a shard whose size and checksum are right."""
    path = folder / shard.name
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"CodeDataset.load: shard {path} is missing or no regular file.")
    expected, size = shard.records * layout.record_bytes, path.stat().st_size
    if size != expected:
        raise ValueError(
            f"CodeDataset.load: shard {path} has {size} bytes, expected {expected} "
            f"({shard.records} records of {layout.record_bytes}); it was cut or replaced."
        )
    content = path.read_bytes()
    crc32 = zlib.crc32(content)
    if crc32 != shard.crc32:
        raise ValueError(
            f"CodeDataset.load: shard {path} is damaged: CRC32 {crc32:08x}, the manifest says "
            f"{shard.crc32:08x}; extract the codes again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shard.records, layout.record_bytes)
