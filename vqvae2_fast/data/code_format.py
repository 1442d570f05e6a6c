"""What the files of a code store hold: records of code maps, and manifest.json.

A record holds the levels from coarse to fine, each map row by row with `bits` bits for each code,
least significant bit first, padded with zeros to a whole byte; then the label as little-endian
int32, -1 for none.

A store is a folder with manifest.json and shards. A shard is records of one fixed length, and holds
those of one range of the set that was encoded: its records are `first`, `first + 1`, ... of that
set. Shards are listed in this order and never overlap, so that the content of a store does not
depend on who wrote it or how often they were interrupted. A shard counts once the manifest names
it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vqvae2_fast.data.images import check_class_names
from vqvae2_fast.files.durable import replace_file
from vqvae2_fast.files.json_file import damaged, json_field, object_in
from vqvae2_fast.files.kinds import TEXT, Kind, integer, list_of, one_of
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import check_regular, read_untrusted
from vqvae2_fast.models.code_checks import describe_maps
from vqvae2_fast.ops._checks import dtype_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "MANIFEST",
    "MAX_CODES",
    "MAX_EMBEDDINGS",
    "MAX_LEVELS",
    "REPAIR",
    "CodeLayout",
    "Manifest",
    "Shard",
    "check_shard_file",
    "checked_codes",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]


MAX_EMBEDDINGS = 2**24  # so that a code and its bit offset (up to 7) fit into 4 bytes
MAX_LEVELS = 16
MAX_CODES = 2**22  # of a record: 2048×2048
_CHUNK_CODES = 2**18  # codes packed at a time; at 4 bytes each they stay in the cache


@dataclass(frozen=True)
class CodeLayout:
    """What a record looks like.

    Args:
        num_embeddings: K, codes of every level.
        level_sizes: (height, width) of each map, coarse to fine.
    """

    num_embeddings: int
    level_sizes: tuple[tuple[int, int], ...]

    def problem(self) -> str:
        """What is wrong with integers that were given as a layout, or ""."""
        sizes = self.level_sizes
        if not 1 <= self.num_embeddings <= MAX_EMBEDDINGS:
            return f"num_embeddings must be in [1, {MAX_EMBEDDINGS}], got {self.num_embeddings}"
        fits = all(h >= 1 and w >= 1 for h, w in sizes) and self.codes_per_record <= MAX_CODES
        if not fits or not 1 <= len(sizes) <= MAX_LEVELS:
            return (
                f"level_sizes must be 1 to {MAX_LEVELS} pairs (height, width) of at most "
                f"{MAX_CODES} codes together, got {sizes[: MAX_LEVELS + 1]}"
            )
        return ""

    @property
    def bits(self) -> int:
        """Bits for each code: max(1, ⌈log₂ K⌉)."""
        return max(1, (self.num_embeddings - 1).bit_length())

    @cached_property
    def map_bytes(self) -> tuple[int, ...]:
        """Bytes of each map in a record."""
        return tuple(-(-codes * self.bits // 8) for codes in self._map_codes)

    @cached_property
    def record_bytes(self) -> int:
        return sum(self.map_bytes) + 4  # the label

    @property
    def codes_per_record(self) -> int:
        return sum(self._map_codes)

    @property
    def storage_dtype(self) -> type[np.signedinteger]:
        """The smaller of int16 and int32 that holds all codes."""
        return np.int16 if self.num_embeddings <= 2**15 else np.int32

    @cached_property
    def _map_codes(self) -> list[int]:
        return [height * width for height, width in self.level_sizes]

    def describe(self) -> str:
        return describe_maps(self.num_embeddings, self.level_sizes)

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """First byte in the record (intp) and shift (uint32) of every code of a record."""
        first_bits = []
        start = 0
        for codes, size in zip(self._map_codes, self.map_bytes, strict=True):
            first_bits.append(start * 8 + np.arange(codes, dtype=np.intp) * self.bits)
            start += size
        first_bit = np.concatenate(first_bits)
        return first_bit >> 3, (first_bit & 7).astype(np.uint32)

    def pack(self, codes: list[Tensor], labels: Tensor) -> np.ndarray:
        """Records of maps `[n, h, w]` (any integer type) and labels `[n]`: uint8 `[n, bytes]`."""
        count = len(labels)
        records = np.zeros((count, self.record_bytes), dtype=np.uint8)
        start = 0
        for level, size in zip(codes, self.map_bytes, strict=True):
            flat = level.reshape(count, -1).numpy()  # [n, h * w]
            step = max(1, _CHUNK_CODES // flat.shape[1])
            for first in range(0, count, step):
                part = slice(first, first + step)
                records[part, start : start + size] = self._packed(flat[part])[:, :size]
            start += size
        records[:, start:] = labels.numpy().astype("<i4").view(np.uint8).reshape(count, 4)
        return records

    def _packed(self, flat: np.ndarray) -> np.ndarray:
        """Packed codes `[n, c]`: uint8 `[n, their bytes or more]`, with zeros at the end."""
        count, codes = flat.shape
        # Eight codes fill `bits` whole bytes, so every eighth code has the same place in its bytes.
        groups = -(-codes // 8)
        padded = np.zeros((count, groups * 8), dtype=np.uint32)
        padded[:, :codes] = flat
        packed = np.zeros((count, (groups + 1) * self.bits + 4), dtype=np.uint8)
        for position in range(8):
            byte, shift = divmod(position * self.bits, 8)
            words = padded[:, position::8] << np.uint32(shift)
            for offset in range((self.bits + shift + 7) // 8):
                at = byte + offset
                packed[:, at : at + groups * self.bits : self.bits] |= (
                    words >> np.uint32(8 * offset)
                ).astype(np.uint8)
        return packed

    def unpack(
        self, records: np.ndarray, dtype: type[np.signedinteger] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The inverse of `pack`: maps in `dtype` (else the storage type), labels int64; unchecked.

        Args:
            records: uint8 `[n, record_bytes]`, C-contiguous.
        """
        count = len(records)
        kind = dtype or self.storage_dtype
        flat = [np.empty((count, codes), kind) for codes in self._map_codes]
        if count:
            self._unpack_into(flat, records)
        maps = [
            torch.from_numpy(level).view(count, height, width)  # [n, h * w] -> [n, h, w]
            for level, (height, width) in zip(flat, self.level_sizes, strict=True)
        ]
        labels = np.ascontiguousarray(records[:, -4:]).view("<i4").reshape(count)
        return maps, torch.from_numpy(labels.astype(np.int64))

    def unpack_one(self, record: np.ndarray) -> tuple[list[Tensor], int]:
        """One record, uint8 `[record_bytes]`: maps int64 `[h, w]` and the label; unchecked."""
        byte, shift = self._places
        windows = np.ndarray((self.record_bytes - 3,), "<u4", record, strides=(1,))
        words = windows.take(byte)
        words >>= shift
        words &= np.uint32((1 << self.bits) - 1)
        codes = torch.from_numpy(words.astype(np.int64)).split(self._map_codes)
        label = int.from_bytes(record[-4:].tobytes(), "little", signed=True)
        return [
            level.view(size) for level, size in zip(codes, self.level_sizes, strict=True)
        ], label

    def _unpack_into(self, flat: list[np.ndarray], records: np.ndarray) -> None:
        byte, shift = self._places
        # The four bytes that begin at each byte, overlapping and unaligned. The label after the
        # last map makes sure that they exist.
        windows = np.ndarray(
            (len(records), self.record_bytes - 3), "<u4", records, strides=(records.strides[0], 1)
        )
        mask = np.uint32((1 << self.bits) - 1)
        step = max(1, _CHUNK_CODES // self.codes_per_record)
        for first in range(0, len(records), step):
            part = windows[first : first + step]
            words = part[:, byte]
            words >>= shift
            words &= mask
            start = 0
            for level in flat:
                level[first : first + step] = words[:, start : start + level.shape[1]]
                start += level.shape[1]


def checked_codes(codes: list[Tensor], count: int, num_embeddings: int) -> None:
    """Raises unless every level is integers `[count, h, w]` in [0, num_embeddings)."""
    if not codes:
        raise ValueError("expected at least one level of codes, got none.")
    for level, maps in enumerate(codes):
        name = f"codes[{level}]"
        if maps.is_floating_point() or maps.is_complex() or maps.dtype == torch.bool:
            raise TypeError(f"expected integer {name}, got {dtype_name(maps.dtype)}.")
        if maps.dim() != 3 or len(maps) != count or 0 in maps.shape[1:]:
            raise ValueError(
                f"expected {name} [{count}, h, w] with h, w >= 1, got {list(maps.shape)}."
            )
        if count:
            low, high = int(maps.min()), int(maps.max())
            if low < 0 or high >= num_embeddings:
                raise ValueError(
                    f"{name} must be in [0, {num_embeddings}) (num_embeddings), "
                    f"got values from {low} to {high}."
                )


MANIFEST = "manifest.json"
VERSION = 1
REPAIR = "vqvae2_fast.data.discard_damaged removes such shards, then extract again"
# Parsed JSON takes some 20 times its size. 8 MiB name 90,000 shards, which hold 5 TB if full.
MAX_MANIFEST_BYTES = 8 * 2**20
_MAX_COUNT = 2**53  # of records, bytes, ...: the integers that every JSON reader holds exactly
_SIZES = Kind(
    "pairs of height and width",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(size, list) and len(size) == 2 for size in value)
        and all(integer(1, _MAX_COUNT).fits(side) for size in value for side in size)
    ),
)
_SHARD = Kind(
    "an object of name, first, records and crc32",
    lambda value: (
        isinstance(value, dict) and set(value) | {"first"} == {"name", "first", "records", "crc32"}
    ),
)
_FILE_NAME = Kind(
    "a plain file name",
    lambda value: (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", value) is not None
    ),
)


@dataclass(frozen=True)
class Shard:
    """Records first, first + 1, ... of the encoded set, in one file; crc32 is that of its bytes."""

    name: str
    first: int
    records: int
    crc32: int

    @property
    def stop(self) -> int:
        return self.first + self.records


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Args:
        layout: The layout of every record.
        class_names: One name per class, in the order of labels.
        checkpoint_hash: Identifies the model that made the codes, or "".
        source_records: Records of the whole set; None if that is not known.
        shards: In the order of `first`.
    """

    layout: CodeLayout
    class_names: tuple[str, ...] = ()
    checkpoint_hash: str = ""
    source_records: int | None = None
    shards: tuple[Shard, ...] = ()

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)

    def missing(self, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Ranges (first, stop) of records in [start, stop) that no shard holds.

        Without `stop`, up to source_records, or to the last record that is there.
        """
        if stop is None:
            stop = self.source_records
        if stop is None:
            stop = self.shards[-1].stop if self.shards else start
        gaps = []
        for shard in self.shards:
            if shard.first > start:
                gaps.append((start, min(shard.first, stop)))
            start = max(start, shard.stop)
            if start >= stop:
                return gaps
        if start < stop:
            gaps.append((start, stop))
        return gaps

    def difference(self, other: Manifest) -> str:
        """How the sets that two stores describe differ, apart from shards; "" if they do not."""
        for name in ("layout", "class_names", "checkpoint_hash", "source_records"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                if name == "layout":
                    return f"{mine.describe()}, not {theirs.describe()}"
                return f"{name} {mine!r}, not {theirs!r}"
        return ""


def write_manifest(
    folder: Path, manifest: Manifest, before: Callable[[], None] | None = None
) -> None:
    """Replaces the manifest; `before` has to sync every shard that it names to the disk.

    Raises:
        ValueError: There are too many shards for any reader to accept the manifest.
    """
    replace_file(folder / MANIFEST, render_manifest(folder, manifest), before)


def render_manifest(folder: Path, manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    text = json.dumps(
        {
            "kind": "code_store",
            "version": VERSION,
            "num_embeddings": manifest.layout.num_embeddings,
            "level_sizes": manifest.layout.level_sizes,
            "bits": manifest.layout.bits,
            "class_names": manifest.class_names,
            "checkpoint_hash": manifest.checkpoint_hash,
            "source_records": manifest.source_records,
            "records": manifest.records,
            "shards": [asdict(shard) for shard in manifest.shards],
        },
        indent=1,
    ).encode("utf-8")
    if len(text) > MAX_MANIFEST_BYTES:
        raise ValueError(
            f"the manifest of {folder} would exceed {MAX_MANIFEST_BYTES} bytes with "
            f"{len(manifest.shards)} shards; use larger ones (shard_bytes)."
        )
    return text


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`, every field checked; shards are not looked at.

    Raises:
        ValueError: No store there, a newer version, or a damaged manifest.
    """
    path = folder / MANIFEST
    try:
        content = read_untrusted(path, MAX_MANIFEST_BYTES, inside=folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"no code store at {printable(folder)}: {printable(path)} is missing."
        ) from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: Path | str = MANIFEST) -> Manifest:
    """The manifest that the bytes of manifest.json are; see `read_manifest`."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise damaged(path, f"larger than {MAX_MANIFEST_BYTES} bytes")
    raw = object_in(content, path)
    json_field(raw, "kind", one_of(["code_store"]), path)
    version = json_field(raw, "version", integer(1, _MAX_COUNT), path)
    if version > VERSION:
        raise ValueError(
            f"{printable(path)} has version {version}, this release reads up to {VERSION}; "
            "install a newer vqvae2_fast."
        )
    k = json_field(raw, "num_embeddings", integer(1, MAX_EMBEDDINGS), path)
    sizes = json_field(raw, "level_sizes", _SIZES, path)
    layout = CodeLayout(k, tuple((height, width) for height, width in sizes))
    if problem := layout.problem():
        raise damaged(path, problem)
    json_field(raw, "bits", integer(layout.bits, layout.bits), path)
    names = json_field(raw, "class_names", list_of(TEXT), path)
    try:
        check_class_names(names)
    except ValueError as error:
        raise damaged(path, str(error).removesuffix(".")) from error
    digest = json_field(raw, "checkpoint_hash", TEXT, path)
    source = raw.get("source_records")
    if source is not None:
        json_field(raw, "source_records", integer(0, _MAX_COUNT), path)
    end = _MAX_COUNT if source is None else source
    shards: list[Shard] = []
    for entry in json_field(raw, "shards", list_of(_SHARD), path):
        stop = shards[-1].stop if shards else 0
        # Stores that were written before `first` existed hold every record, in the order of the
        # list.
        entry = {"first": stop, **entry}
        name = json_field(entry, "name", _FILE_NAME, path)
        at = f"{path}, shard {name},"
        first = json_field(entry, "first", integer(stop, _MAX_COUNT), at)
        count = json_field(entry, "records", integer(1, end - first), at)
        crc32 = json_field(entry, "crc32", integer(0, 2**32 - 1), at)
        shards.append(Shard(name, first, count, crc32))
    if len({shard.name for shard in shards}) < len(shards):
        raise damaged(path, "a shard is named twice")
    total = sum(shard.records for shard in shards)
    json_field(raw, "records", integer(total, total), path)
    return Manifest(layout, tuple(names), digest, source, tuple(shards))


def check_shard_file(folder: Path, layout: CodeLayout, shard: Shard) -> Path:
    """The shard's path, if there is a regular file of the right size.

    Raises:
        ValueError: If not.
    """
    path = folder / shard.name
    try:
        status = check_regular(path, links=False)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"shard {printable(path)} is missing or not a regular file; {REPAIR}."
        ) from error
    expected = shard.records * layout.record_bytes
    if status.st_size != expected:
        raise ValueError(
            f"shard {printable(path)} has {status.st_size} bytes, expected {expected} "
            f"({shard.records} records of {layout.record_bytes}); it was cut or replaced: {REPAIR}."
        )
    return path
