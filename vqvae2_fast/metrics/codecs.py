"""Image codecs as a yardstick: the quality of WebP, JPEG, AVIF and JPEG XL by bits per image."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vqvae2_fast.data import to_float
from vqvae2_fast.metrics.estimates import ALONE
from vqvae2_fast.metrics.reconstruction import PairSums

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from vqvae2_fast.metrics.estimates import Processes
    from vqvae2_fast.metrics.perceptual import LPIPS
    from vqvae2_fast.metrics.reconstruction import Reconstruction

__all__ = ["CODECS", "Codec", "CodecCurve", "CodecPoint", "codec_at_bits"]


# Pixels of an image from which more threads save time with a quick codec, too.
_LEAST_OF_QUICK = 64 * 64


@dataclass(frozen=True)
class CodecPoint:
    """A setting of a codec on a set of images.

    Args:
        bits_per_image: Mean of the bits that count, which are those without headers.
        file_bits_per_image: Mean of whole files.
        measured: Its errors, in the measures of `PairSums`.
    """

    quality: int
    bits_per_image: float
    file_bits_per_image: float
    measured: Reconstruction

    @property
    def psnr(self) -> float:
        return self.measured.psnr


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
        plugin: The module that brings the format to Pillow, if Pillow lacks it.
        quick: Small images take less time in the codec than in Python.
    """

    name: str
    counted: str
    payload: Callable[[bytes], int]
    qualities: Sequence[int]
    options: dict[str, Any] = field(default_factory=dict)
    has_grey: bool = False
    plugin: str | None = None
    quick: bool = False

    def available(self) -> bool:
        """Whether this installation of Pillow can write the format."""
        if self.plugin is not None and find_spec(self.plugin) is not None:
            import_module(self.plugin)
        Image.init()
        return self.options["format"] in Image.SAVE


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


def _av1_bytes(file: bytes) -> int:
    """Bytes of the box of data (mdat): without those that describe it."""
    at = found = 0
    while at < len(file):
        size = int.from_bytes(file[at : at + 4], "big")
        if file[at + 4 : at + 8] == b"mdat":
            found += size - 8
        at += size
    return found


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
        quick=True,
    ),
    "avif": Codec(
        "AVIF",
        "without its container",
        _av1_bytes,
        range(0, 101, 10),
        # One thread, so that its time does not depend on the machine; it has no effect on files.
        {"format": "AVIF", "speed": 4, "max_threads": 1},
    ),
    # A bare codestream: all of it counts.
    "jxl": Codec(
        "JPEG XL",
        "whole files",
        len,
        range(5, 101, 10),
        {"format": "JXL", "effort": 7, "num_threads": 1},
        has_grey=True,
        plugin="pillow_jxl",
    ),
}


class CodecCurve:
    """Rate and quality of a codec on a set of images, which are added batch by batch."""

    def __init__(
        self,
        codec: Codec,
        qualities: Sequence[int] | None = None,
        perceptual: LPIPS | None = None,
    ) -> None:
        self.codec = codec
        self.qualities = codec.qualities if qualities is None else qualities
        self._perceptual = perceptual
        self._payload = [0] * len(self.qualities)
        self._files = [0] * len(self.qualities)
        self._sums: list[PairSums] = []
        self._images, self._size = 0, (0, 0)

    def add(self, images: Tensor) -> None:
        """Encode images uint8 `[N, C, H, W]`, C = 1 or 3, each by itself at every quality."""
        if not len(images):
            return
        if not self._sums:
            self._size = (images.shape[2], images.shape[3])
            self._sums = [PairSums.of_size(self._size, self._perceptual) for _ in self.qualities]
        if images.shape[1] == 1 and not self.codec.has_grey:
            images = images.expand(-1, 3, -1, -1)
        given = to_float(images)
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()  # [N, C, H, W] -> [N, H, W, C]
        # Pillow's codecs run without Python's lock.
        small = self._size[0] * self._size[1] < _LEAST_OF_QUICK
        threads = 1 if self.codec.quick and small else min(torch.get_num_threads(), len(pixels))
        parts = np.array_split(pixels, threads)
        with ThreadPoolExecutor(threads, "codec") as pool:
            for number, quality in enumerate(self.qualities):
                coded = pool.map(_coded, parts, repeat(self.codec), repeat(quality))
                payload, files, decoded = zip(*coded, strict=True)
                self._payload[number] += sum(payload)
                self._files[number] += sum(files)
                # [N, H, W, C] -> [N, C, H, W]
                shown = torch.from_numpy(np.concatenate(decoded)).permute(0, 3, 1, 2)
                self._sums[number].add(given, to_float(shown).to(given.device))
        self._images += len(pixels)

    def points(self, processes: Processes = ALONE) -> list[CodecPoint]:
        """One point per quality, for all images that all processes have added.

        Raises:
            ValueError: No images were added.
        """
        own = [self._images, self._size, self._payload, self._files]
        found = processes.gathered([*own, [sums.terms for sums in self._sums]])
        parts = [part for part in found if part[0]]
        if not parts:
            raise ValueError("expected at least one image, got none.")
        images, sizes, payload, files, terms = zip(*parts, strict=True)
        count, points = sum(images), []
        for number, quality in enumerate(self.qualities):
            sums = PairSums.of_size(tuple(sizes[0]), self._perceptual)
            sums.terms = [term for part in terms for term in part[number]]
            counted, whole = (
                8 * sum(part[number] for part in of_all) / count for of_all in (payload, files)
            )
            points.append(CodecPoint(quality, counted, whole, sums.result()))
        return points


def _coded(images: np.ndarray, codec: Codec, quality: int) -> tuple[int, int, np.ndarray]:
    """The bytes of images `[N, H, W, C]` that count, those of their files, and what they decode
    to."""
    coded = [_encoded(image, codec, quality) for image in images]
    payload = sum(codec.payload(file) for file, _ in coded)
    return payload, sum(len(file) for file, _ in coded), np.stack([shown for _, shown in coded])


def _encoded(pixels: np.ndarray, codec: Codec, quality: int) -> tuple[bytes, np.ndarray]:
    """The file of an image `[H, W, C]`, and what it decodes to."""
    stream = io.BytesIO()
    grey = pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    image.save(stream, quality=quality, **codec.options)
    decoded = np.array(Image.open(stream).convert("L" if grey else "RGB"))
    return stream.getvalue(), decoded[..., None] if grey else decoded


def codec_at_bits(
    curve: Sequence[CodecPoint], bits_per_image: float, measure: str = "psnr"
) -> float | None:
    """A measure on the curve at a rate, linear between its points; None below its lowest rate.

    Above its highest rate it is the value there. None also where the measure was not taken.

    Args:
        measure: A field of `PairMeasures`.
    """
    points = sorted(curve, key=lambda point: point.bits_per_image)
    values = [
        value for point in points if (value := getattr(point.measured, measure, None)) is not None
    ]
    if bits_per_image < points[0].bits_per_image or len(values) < len(points):
        return None
    return float(np.interp(bits_per_image, [point.bits_per_image for point in points], values))
