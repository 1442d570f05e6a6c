"""The target `vq2`: files of `compress`, whose damage also reaches the range decoder."""

from __future__ import annotations

import struct
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vqvae2_fast import codec
from vqvae2_fast.codec.codes import pipeline_hash

if TYPE_CHECKING:
    from vqvae2_fast.sampling.pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.models import tiny_pipeline  # noqa: E402

__all__ = ["MAKE", "read_compressed", "seal_compressed"]

# Two files, so that parts of one come into the other.
_NAMES = ("a.vq2", "b.vq2")
_HEADER, _ROW = 32, 8  # bytes of a segment's header, and of its row for each level
_CHECK = 30  # where the check of both is


@cache
def _pipeline() -> Pipeline:
    return tiny_pipeline(num_classes=3)


def _codes(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(13, (count, side, side), generator=generator) for side in (4, 8)]


def _make_codes(folder: Path) -> None:
    for seed, name in enumerate(_NAMES):
        (folder / name).write_bytes(codec.encode_codes(_pipeline(), _codes(1, seed)))


def _make_segments(folder: Path) -> None:
    for seed, name in enumerate(_NAMES):
        labels = torch.tensor([2, seed, 1])
        batches = [(_codes(3, seed), labels), (_codes(2, seed + 2), labels[:2])]
        (folder / name).write_bytes(b"".join(codec.encode_stream(_pipeline(), batches)))


def _make_images(folder: Path) -> None:
    for seed, name in enumerate(_NAMES):
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(1, 3, 20, 30, generator=generator) * 2 - 1
        (folder / name).write_bytes(codec.encode_images(_pipeline(), images, levels=2 - seed))


MAKE = (_make_codes, _make_segments, _make_images)


def read_compressed(folder: Path, out: Path) -> None:
    """Decodes both files as `decompress` does."""
    for name in _NAMES:
        with codec.open_compressed(folder / name) as file:
            found = codec.describe(file)
            file.seek(0)
            if found.sizes == [(0, 0)]:
                for _ in codec.decode_stream(_pipeline(), file, max_images=4096):
                    pass
            else:
                for _ in codec.decode_image_stream(_pipeline(), file, max_images=4096):
                    pass


def seal_compressed(folder: Path) -> None:
    """Writes the pipeline's hash, and the CRCs of what payloads and headers are now. If a segment's
    lengths lead past the end, its last payload becomes as long as the file."""
    for name in _NAMES:
        data = bytearray((folder / name).read_bytes())
        start = 0
        while data[start : start + 4] == b"VQ2C" and len(data) >= start + _HEADER:
            data[start + 8 : start + 16] = pipeline_hash(_pipeline())
            levels = data[start + 7]
            payload = start + _HEADER + levels * _ROW
            if payload > len(data):
                break
            for level in range(levels):
                row = start + _HEADER + level * _ROW
                (size,) = struct.unpack_from("<I", data, row)
                size = min(size, len(data) - payload)
                crc = zlib.crc32(data[payload : payload + size])
                struct.pack_into("<II", data, row, size, crc)
                payload += size
            table = data[start + _HEADER : start + _HEADER + levels * _ROW]
            check = zlib.crc32(table, zlib.crc32(data[start : start + _CHECK])) & 0xFFFF
            struct.pack_into("<H", data, start + _CHECK, check)
            start = payload
        (folder / name).write_bytes(data)
