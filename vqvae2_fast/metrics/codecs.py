"""Image codecs as a yardstick: the quality that WebP reaches at a number of bits an image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vqvae2_fast.metrics.reconstruction import psnr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CodecPoint", "webp_at_bits", "webp_curve"]

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
    points = []
    for quality in qualities:
        size, error = 0, 0.0
        for image in pixels:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, format="WEBP", quality=quality, method=6)
            size += len(stream.getvalue()) - _CONTAINER_BYTES
            decoded = np.asarray(Image.open(stream).convert("RGB"), dtype=np.float64)
            error += float(np.square((decoded - image) / 255).mean())
        points.append(CodecPoint(quality, 8 * size / len(pixels), psnr(error / len(pixels))))
    return points


def webp_at_bits(curve: Sequence[CodecPoint], bits_per_image: float) -> float | None:
    """PSNR of the curve at a rate, linear between its points; None below its least rate.

    Above its highest rate, the PSNR of that.
    """
    points = sorted(curve, key=lambda point: point.bits_per_image)
    if bits_per_image < points[0].bits_per_image:
        return None
    rates = [point.bits_per_image for point in points]
    return float(np.interp(bits_per_image, rates, [point.psnr for point in points]))
