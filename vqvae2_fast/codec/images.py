"""Images as `.vq2` bytes, and back: tiles of the model's size, encoded to codes."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.codec.bitstream import Header, UnfitFileError, read_segments, write_segment
from vqvae2_fast.codec.codes import (
    Coder,
    check_pipeline,
    checked_levels,
    decoded_codes,
    encoded,
    parts_of,
)
from vqvae2_fast.codec.tiles import Tiling
from vqvae2_fast.console.words import counted
from vqvae2_fast.data import pixels
from vqvae2_fast.models.code_checks import check_labels, check_pixels
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.sampling.labels import label_tensor
from vqvae2_fast.sampling.pipeline import check_is_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.sampling.labels import Labels
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["check_image_size", "decode_image_stream", "decode_images", "encode_images"]

MAX_SIDE = 2**16 - 1
_BATCH = 64  # tiles whose codes are decoded at a time


def encode_images(
    pipeline: Pipeline,
    images: Tensor,
    *,
    labels: Labels = None,
    engine: str = "cpu",
    levels: int | None = None,
    seed: int = 0,
) -> bytes:
    """Images as a `.vq2` file. Only the VQ-VAE loses information; its codes are kept exactly.

    Images larger than the model's are cut into tiles, of which the VQ-VAE sees a margin too, so
    that their borders do not show; the last ones of a row or column are padded by repeating their
    border.

    Args:
        images: Float `[B, C, H, W]` in [-1, 1], of any size up to `data.pixels.MAX_PIXELS` pixels.
        labels, engine, levels, seed: See `encode_codes`.

    Raises:
        ValueError: Images of other channels, that are too large, that are not finite, or that have
            values outside [-2, 2]; or as `encode_codes`.
        TypeError: Images that are no tensor; or as `encode_codes`.
        RuntimeError: As `encode_codes`.
    """
    vqvae = _vqvae(pipeline)
    channels = vqvae.config.image_channels
    if not isinstance(images, Tensor):
        raise TypeError(
            f"expected images to be a tensor, float [B, {channels}, H, W], got a "
            f"{type(images).__name__}. Use `to_float` for a tensor of bytes, and "
            "`vqvae2-fast compress` for files."
        )
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        raise ValueError(
            f"expected images float [B, {channels}, H, W], got {list(images.shape)} "
            f"{dtype_name(images.dtype)}."
        )
    batch, _, height, width = images.shape
    if not batch or not 1 <= height <= MAX_SIDE or not 1 <= width <= MAX_SIDE:
        raise ValueError(
            f"expected images with B >= 1 and sides of 1 to {MAX_SIDE}, got {list(images.shape)}."
        )
    if height * width > pixels.MAX_PIXELS:
        raise ValueError(
            f"expected images of at most {pixels.MAX_PIXELS:,} pixels, since larger "
            f"ones are not decoded, got {height}x{width}, which are {height * width:,}. Cut them "
            "into several, or raise vqvae2_fast.data.pixels.MAX_PIXELS there and here."
        )
    check_pixels(images)
    num_levels = checked_levels(pipeline, levels, seed)
    numbers = label_tensor(labels, pipeline.num_classes, pipeline.class_names)
    if numbers is not None:  # one per image; below there is one per tile
        check_labels(numbers, pipeline.num_classes, batch)
    rows, columns = Tiling(vqvae, height, width, margins=False).grid
    tiles = rows * columns
    # One tile is what the model was trained on.
    tiling = Tiling(vqvae, height, width, margins=tiles > 1)
    codes = tiling.encode(images.to(next(vqvae.parameters())))
    if numbers is not None:
        numbers = numbers.repeat_interleave(tiles)
    coder = Coder.of(pipeline)
    header = Header(
        coder.hash,
        batch * tiles,
        num_levels,
        height,
        width,
        seed=seed,
        margins=tiling.margins,
    )
    return write_segment(encoded(coder, header, codes, numbers, engine))


def decode_images(pipeline: Pipeline, data: bytes | IO[bytes], *, max_images: int = 4096) -> Tensor:
    """The images of a `.vq2` file, float `[B, C, H, W]` in [-1, 1].

    Args:
        max_images: Refuse a file of more images, or tiles of images.

    Raises:
        ValueError: As `decode_codes`; a file of code maps; images of more pixels than
            `data.pixels.MAX_PIXELS`, which is read at each call; or images of several sizes.
        TypeError: As `decode_codes`; or a pipeline with another VQ-VAE than a `VQVAE2`.
        RuntimeError: As `decode_codes`.
    """
    images = list(decode_image_stream(pipeline, data, max_images=max_images))
    sizes = {tuple(part.shape[2:]) for part in images}
    if len(sizes) > 1:
        raise ValueError(
            f"expected images of one size, the file has {sorted(sizes)}. Take them "
            "from decode_image_stream."
        )
    return torch.cat(images)


def decode_image_stream(
    pipeline: Pipeline, data: bytes | IO[bytes], *, max_images: int | None = None
) -> Iterator[Tensor]:
    """The images of a `.vq2` file, float `[B, C, H, W]`, a few of one size at a time.

    See `decode_images`.
    """
    vqvae = _vqvae(pipeline)
    coder, first = Coder.of(pipeline), 0
    for segment in read_segments(data, max_images=max_images):
        header = segment.header
        check_pipeline(header, coder.hash)
        check_image_size(header.height, header.width)
        tiling = Tiling(vqvae, header.height, header.width, header.margins)
        rows, columns = tiling.grid
        if not rows * columns or header.num_images % (rows * columns):
            found = f"one of code maps, {header.num_images:,} of each level"
            if header.height and header.width:
                found = (
                    f"{counted(header.num_images, 'code map')} of images of "
                    f"{header.height}x{header.width}"
                )
            raise UnfitFileError(f"expected a file of images, got {found}.", "Use decode_codes.")
        # Whole images, few at a time: a small file may have very many.
        for images in parts_of(segment, max(1, _BATCH // (rows * columns)) * rows * columns):
            parts = []
            for part in parts_of(images, _BATCH):
                parts.append(decoded_codes(coder, part, first)[0])
                first += part.header.num_images
            yield tiling.decode(pipeline, [torch.cat(maps) for maps in zip(*parts, strict=True)])


def check_image_size(height: int, width: int) -> None:
    """Raises UnfitFileError if images of a file are larger than any that is decoded. A file may be
    much smaller than they are."""
    if height * width > pixels.MAX_PIXELS:
        raise UnfitFileError(
            f"expected images of at most {pixels.MAX_PIXELS:,} pixels, the file has some "
            f"of {height}x{width}, which are {height * width:,}.",
            "To decode them, raise vqvae2_fast.data.pixels.MAX_PIXELS in Python.",
        )


def _vqvae(pipeline: Pipeline) -> VQVAE2:
    check_is_pipeline(pipeline)
    if not isinstance(pipeline.vqvae, VQVAE2):
        raise TypeError(
            f"expected a pipeline with a VQVAE2, got a {type(pipeline.vqvae).__name__}; "
            "encode_codes and decode_codes take the codes of any model."
        )
    return pipeline.vqvae
