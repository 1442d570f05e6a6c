"""Images of noise or of one colour, and files of them, for tests of what reads images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["noise", "write_image"]


def write_image(
    path: Path, pixels: NDArray[Any] | tuple[int, ...], size: int = 8, **options: Any
) -> None:
    """Saves an array, or a size×size square of one colour, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, tuple):
        pixels = np.full((size, size, len(pixels)), pixels, np.uint8)
    Image.fromarray(pixels).save(path, **options)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels, `[height, width, channels]`, or `[height, width]` for one channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels
