"""A record of code maps, bit by bit, and the packing of many at once.

A record holds the levels from coarse to fine, each map row by row with `bits` bits for each code,
least significant bit first, padded with zeros to a whole byte; then the label as little-endian
int32, -1 for none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vqvae2_fast.models.code_checks import describe_maps
from vqvae2_fast.ops._checks import dtype_name

__all__ = ["MAX_CODES", "MAX_EMBEDDINGS", "MAX_LEVELS", "CodeLayout", "checked_codes"]

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
