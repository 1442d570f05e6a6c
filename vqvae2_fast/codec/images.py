"""Images as `.vq2` bytes, and back: tiles of the model's size, encoded to codes."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.codec.bitstream import Header, read_segments, write_segment
from vqvae2_fast.codec.codes import (
    check_pipeline,
    checked_levels,
    decoded_codes,
    encoded,
    parts_of,
    pipeline_hash,
)
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import decoded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["decode_image_stream", "decode_images", "encode_images"]

MAX_SIDE = 2**16 - 1
_BATCH = 64  # tiles that are encoded, or decoded, at a time


def encode_images(
    pipeline: Pipeline,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    engine: str = "cpu",
    levels: int | None = None,
    seed: int = 0,
) -> bytes:
    """Images as a `.vq2` file. Only the VQ-VAE loses information; its codes are kept exactly.

    Images larger than the model's are cut into tiles; the last ones of a row or column are padded
    by repeating their border.

    Args:
        images: Float `[B, C, H, W]` in [-1, 1], of any size.
        labels, engine, levels, seed: See `encode_codes`.

    Raises:
        ValueError: Images of other channels, or as `encode_codes`.
        RuntimeError: As `encode_codes`.
    """
    where = "encode_images"
    vqvae = _vqvae(where, pipeline)
    channels = vqvae.config.image_channels
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        raise ValueError(
            f"{where}: expected images float [B, {channels}, H, W], got {list(images.shape)} "
            f"{images.dtype}."
        )
    batch, _, height, width = images.shape
    if not batch or not 1 <= height <= MAX_SIDE or not 1 <= width <= MAX_SIDE:
        raise ValueError(
            f"{where}: expected images with B >= 1 and sides of 1 to {MAX_SIDE}, got "
            f"{list(images.shape)}."
        )
    num_levels = checked_levels(where, pipeline, levels, seed)
    tiles = _tiles(images, vqvae.config.image_size)
    with torch.no_grad():
        encoded_tiles = [vqvae.encode(part) for part in tiles.split(_BATCH)]
    codes = [torch.cat(maps) for maps in zip(*encoded_tiles, strict=True)]
    if labels is not None:
        labels = labels.repeat_interleave(len(tiles) // batch)
    header = Header(pipeline_hash(pipeline), len(tiles), num_levels, height, width, seed=seed)
    return write_segment(encoded(where, pipeline, header, codes, labels, engine))


def decode_images(pipeline: Pipeline, data: bytes | IO[bytes], *, max_images: int = 4096) -> Tensor:
    """The images of a `.vq2` file, float `[B, C, H, W]` in [-1, 1].

    Args:
        max_images: Refuse a file of more images, or tiles of images.

    Raises:
        ValueError: As `decode_codes`; a file of code maps; or images of several sizes.
        RuntimeError: As `decode_codes`.
    """
    images = list(decode_image_stream(pipeline, data, max_images=max_images))
    sizes = {tuple(part.shape[2:]) for part in images}
    if len(sizes) > 1:
        raise ValueError(
            f"decode_images: expected images of one size, the file has {sorted(sizes)}. Take them "
            "one segment at a time from decode_image_stream."
        )
    return torch.cat(images)


def decode_image_stream(
    pipeline: Pipeline, data: bytes | IO[bytes], *, max_images: int | None = None
) -> Iterator[Tensor]:
    """The images of each segment of a `.vq2` file, float `[B, C, H, W]`; see `decode_images`."""
    where = "decode_images"
    vqvae = _vqvae(where, pipeline)
    expected, first = pipeline_hash(pipeline), 0
    for segment in read_segments(data, max_images=max_images, where=where):
        header = segment.header
        check_pipeline(where, header, expected)
        tiles_per_image = _tile_count(header.height, header.width, vqvae.config.image_size)
        if not tiles_per_image or header.num_images % tiles_per_image:
            raise ValueError(
                f"{where}: expected a file of images, got {header.num_images} code maps of images "
                f"of {header.height}x{header.width}. Use decode_codes."
            )
        tiles = []
        for part in parts_of(segment, _BATCH):
            codes, _ = decoded_codes(where, pipeline, part, first)
            tiles.append(decoded(pipeline, codes))
            first += len(codes[0])
        yield _joined(torch.cat(tiles), header.height, header.width)


def _vqvae(where: str, pipeline: Pipeline) -> VQVAE2:
    if not isinstance(pipeline.vqvae, VQVAE2):
        raise TypeError(
            f"{where}: expected a pipeline with a VQVAE2, got a {type(pipeline.vqvae).__name__}; "
            "encode_codes and decode_codes take the codes of any model."
        )
    return pipeline.vqvae


def _tile_count(height: int, width: int, tile: tuple[int, int]) -> int:
    return -(-height // tile[0]) * -(-width // tile[1])


def _tiles(images: Tensor, tile: tuple[int, int]) -> Tensor:
    """`[B, C, H, W]` -> `[B·rows·columns, C, h, w]`, an image's tiles row by row."""
    height, width = images.shape[2:]
    fill = (0, -width % tile[1], 0, -height % tile[0])
    filled = F.pad(images, fill, mode="replicate") if any(fill) else images
    rows = filled.unfold(2, tile[0], tile[0]).unfold(3, tile[1], tile[1])  # [B, C, r, c, h, w]
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


def _joined(tiles: Tensor, height: int, width: int) -> Tensor:
    """The images that `_tiles` cut."""
    h, w = tiles.shape[2:]
    rows, columns = -(-height // h), -(-width // w)
    grid = tiles.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)  # [B, C, r, h, c, w]
    return grid.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
