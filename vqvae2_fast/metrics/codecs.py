"""Image codecs as a yardstick: the quality of WebP and JPEG at a number of bits an image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vqvae2_fast.metrics.reconstruction import psnr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["CodecPoint", "codec_at_bits", "jpeg_curve", "webp_at_bits", "webp_curve"]

# A lossy WebP file is a RIFF header (12 bytes), a chunk header (8) and the VP8 stream. Only the
# stream counts: a bitstream of codes would need no such wrapping either.
_CONTAINER_BYTES = 20


@dataclass(frozen=True)
class CodecPoint:
    """A setting of a codec on a set of images: mean bits an image and PSNR of the mean error."""

    quality: int
    bits_per_image: float
    psnr: float


def webp_curve(images: Tensor, qualities: Sequence[int] = range(0, 101, 5)) -> list[CodecPoint]:
    """Rate and quality of WebP's lossy mode (slowest and best method) on each image by itself.

    Args:
        images: uint8 `[N, C, H, W]`, C = 1 or 3.
    """
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()  # [N, C, H, W] -> [N, H, W, C]
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return [
        _point(
            pixels,
            lambda stream: len(stream) - _CONTAINER_BYTES,
            format="WEBP",
            quality=quality,
            method=6,
        )
        for quality in qualities
    ]


def jpeg_curve(images: Tensor, qualities: Sequence[int] = range(5, 101, 5)) -> list[CodecPoint]:
    """As `webp_curve`, of baseline JPEG with 4:2:0 chroma and Huffman tables for each image.

    Only the bytes of the scan count: headers and tables, several times as long for small images,
    do not.
    """
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return [
        _point(pixels, _scan_bytes, format="JPEG", quality=quality, optimize=True)
        for quality in qualities
    ]


def _point(pixels: np.ndarray, size_of: Callable[[bytes], int], **options: Any) -> CodecPoint:
    size, error = 0, 0.0
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, **options)
        size += size_of(stream.getvalue())
        mode = "L" if image.ndim == 2 else "RGB"
        decoded = np.asarray(Image.open(stream).convert(mode), dtype=np.float64)
        error += float(np.square((decoded - image) / 255).mean())
    return CodecPoint(options["quality"], 8 * size / len(pixels), psnr(error / len(pixels)))


def _scan_bytes(stream: bytes) -> int:
    """Bytes between the header of the scan (SOS) and the end of the image (EOI)."""
    at = 2  # past SOI
    while stream[at + 1] != 0xDA:
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return len(stream) - at - 2


def codec_at_bits(curve: Sequence[CodecPoint], bits_per_image: float) -> float | None:
    """PSNR of the curve at a rate, linear between its points; None below its least rate.

    Above its highest rate, the PSNR of that.
    """
    points = sorted(curve, key=lambda point: point.bits_per_image)
    if bits_per_image < points[0].bits_per_image:
        return None
    rates = [point.bits_per_image for point in points]
    return float(np.interp(bits_per_image, rates, [point.psnr for point in points]))


webp_at_bits = codec_at_bits
