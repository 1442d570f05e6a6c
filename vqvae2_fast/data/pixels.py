"""From a decoded image of any kind to uint8 `[C, H, W]` of one size; which files are tried."""

from __future__ import annotations

import struct

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vqvae2_fast.data.images import to_uint8

__all__ = [
    "DECODE_ERRORS",
    "FORMATS",
    "CorruptImageError",
    "cover",
    "pictures",
    "pixels_of",
    "size_of",
]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What Pillow raises for damaged files of these formats, as found by damaging 45,000 of them, and
# what its readers are written to raise besides.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    OverflowError,
    Image.DecompressionBombError,
    EOFError,
    struct.error,
)
_EXIF_ORIENTATION = 0x0112
_EXIF_TRANSPOSED = (5, 6, 7, 8)


class CorruptImageError(ValueError):
    """An image file that cannot be decoded."""


def size_of(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image as it is upright."""
    if image.getexif().get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED:
        return image.width, image.height
    return image.height, image.width


def check_mode(name: str, image: Image.Image, channels: int, convert_channels: bool) -> None:
    """Raises ValueError for images whose pixels cannot be made `channels` ones."""
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name} has 32-bit pixels (mode {image.mode}), whose range is not known; "
            "convert it to 8 or 16 bits."
        )
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")
    found = 1 if grey else 3
    if found != channels and not convert_channels:
        raise ValueError(
            f"{name} has {found} channel(s) (mode {image.mode}), expected "
            f"image_channels={channels}; pass image_channels={found} or convert_channels=True."
        )


def pixels_of(image: Image.Image, image_shape: tuple[int, int, int]) -> Tensor | None:
    """The image upright, covering the size and cropped to it; None if it is smaller.

    Args:
        image: Any mode but 32-bit pixels; transparency goes on white.
        image_shape: (C, H, W), C = 1 or 3.

    Raises:
        DECODE_ERRORS: The file is damaged.
    """
    channels, height, width = image_shape
    pixels = _flatten(ImageOps.exif_transpose(image))
    if pixels.width < width or pixels.height < height:
        return None
    pixels = cover(pixels.convert("L" if channels == 1 else "RGB"), height, width)
    array = np.array(pixels, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()  # [H, W, C] -> [C, H, W]


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre of the image, scaled down (bicubic, antialiased) to just cover the size."""
    scale = min(image.width / width, image.height / height)
    left = (image.width - width * scale) / 2
    top = (image.height - height * scale) / 2
    box = (left, top, image.width - left, image.height - top)
    if scale == 1.0:  # a crop of whole pixels: half a pixel aside would blur
        return image.crop((int(left), int(top), int(left) + width, int(top) + height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _flatten(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB: 16 bits to 8, palettes resolved, transparency over white."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion to L clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) / 257.0 + 0.5).astype(np.uint8))
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        return white.convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def pictures(images: Tensor) -> list[Image.Image]:
    """Images `[N, C, H, W]` in [-1, 1] as pictures: grey for one channel, RGB for three."""
    pixels = to_uint8(images).cpu().permute(0, 2, 3, 1).numpy()  # [N, C, H, W] -> [N, H, W, C]
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
