"""Image codecs as a yardstick: the quality of WebP and JPEG at a number of bits per image."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vqvae2_fast.metrics.reconstruction import psnr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["CODECS", "Codec", "CodecCurve", "CodecPoint", "codec_at_bits"]


@dataclass(frozen=True)
class CodecPoint:
    """A setting of a codec on a set of images: mean bits per image and PSNR of the mean error."""

    quality: int
    bits_per_image: float
    psnr: float


@dataclass(frozen=True)
class Codec:
    """A codec of Pillow, and which of its bytes count.

    Args:
        name: What reports call it.
        counted: A phrase for pictures that says which part of its files is counted.
        payload: The number of those bytes in a file. Headers do not count, since a bitstream of
            codes would need none either, and for small images they outweigh the rest.
        qualities: The settings that make its curve.
        options: Options of `Image.save`.
        has_grey: Whether it stores images of one channel; else they are encoded as RGB.
    """

    name: str
    counted: str
    payload: Callable[[bytes], int]
    qualities: Sequence[int]
    options: dict[str, Any] = field(default_factory=dict)
    has_grey: bool = False


def _vp8_bytes(file: bytes) -> int:
    """Bytes of the VP8 stream: without the header of RIFF (12 bytes) and of its chunk (8)."""
    return len(file) - 20


def _scan_bytes(file: bytes) -> int:
    """Bytes between the header of the scan (SOS) and the end of the image (EOI)."""
    at = 2  # past SOI
    while file[at + 1] != 0xDA:
        at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return len(file) - at - 2


CODECS = {
    # Its lossy mode, with the slowest and best method.
    "webp": Codec(
        "WebP",
        "without its container",
        _vp8_bytes,
        range(0, 101, 5),
        {"format": "WEBP", "method": 6},
    ),
    # Baseline, 4:2:0 chroma, Huffman tables made for each image.
    "jpeg": Codec(
        "JPEG",
        "scan alone",
        _scan_bytes,
        range(5, 101, 5),
        {"format": "JPEG", "optimize": True},
        has_grey=True,
    ),
}


class CodecCurve:
    """Rate and quality of a codec on a set of images, which are added batch by batch."""

    def __init__(self, codec: Codec, qualities: Sequence[int] | None = None) -> None:
        self.codec = codec
        self.qualities = codec.qualities if qualities is None else qualities
        self._bytes = [0] * len(self.qualities)
        self._errors = [0.0] * len(self.qualities)
        self._images = 0

    def add(self, images: Tensor) -> None:
        """Encode images uint8 `[N, C, H, W]`, C = 1 or 3, each by itself at every quality."""
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()  # [N, C, H, W] -> [N, H, W, C]
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0] if self.codec.has_grey else np.repeat(pixels, 3, axis=-1)
        for image in pixels:
            for number, quality in enumerate(self.qualities):
                size, error = _encoded(image, self.codec, quality)
                self._bytes[number] += size
                self._errors[number] += error
        self._images += len(pixels)

    def points(self) -> list[CodecPoint]:
        """One point per quality, for all images that were added.

        Raises:
            ValueError: No images were added.
        """
        count = self._images
        if not count:
            raise ValueError("CodecCurve: expected at least one image, got none.")
        return [
            CodecPoint(quality, 8 * size / count, psnr(error / count))
            for quality, size, error in zip(self.qualities, self._bytes, self._errors, strict=True)
        ]


def _encoded(image: np.ndarray, codec: Codec, quality: int) -> tuple[int, float]:
    """Counted bytes, and the mean squared error of pixels in [0, 1]."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, quality=quality, **codec.options)
    mode = "L" if image.ndim == 2 else "RGB"
    decoded = np.asarray(Image.open(stream).convert(mode), dtype=np.float64)
    return codec.payload(stream.getvalue()), float(np.square((decoded - image) / 255).mean())


def codec_at_bits(curve: Sequence[CodecPoint], bits_per_image: float) -> float | None:
    """PSNR of the curve at a rate, linear between its points; None below its lowest rate.

    Above its highest rate it is the PSNR there.
    """
    points = sorted(curve, key=lambda point: point.bits_per_image)
    if bits_per_image < points[0].bits_per_image:
        return None
    rates = [point.bits_per_image for point in points]
    return float(np.interp(bits_per_image, rates, [point.psnr for point in points]))
