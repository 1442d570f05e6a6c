"""Images that come and go: uploads that nobody vouches for, and PNG files."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from vqvae2_fast.data.images import to_float
from vqvae2_fast.data.pixels import (
    DECODE_ERRORS,
    FORMATS,
    TooSmallImageError,
    decode_image,
    open_image,
    pictures,
)
from vqvae2_fast.files.printable import short
from vqvae2_fast.serve.limits import Problem

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_png", "from_base64", "uploaded_image"]


def as_png(image: Tensor) -> str:
    """An image `[C, H, W]` in [-1, 1] as a PNG file in base64."""
    file = io.BytesIO()
    pictures(image[None])[0].save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def from_base64(field: str, text: str) -> bytes:
    """The bytes of a base64 string. Raises Problem."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Problem(
            422,
            field,
            "expected base64, got text with other characters, or text that was cut.",
            "Encode the file's bytes as base64, with nothing before them such as `data:...,`.",
        ) from error


def uploaded_image(field: str, data: bytes, shape: tuple[int, int, int], max_pixels: int) -> Tensor:
    """An uploaded image, scaled and cropped to a shape: float `[C, H, W]` in [-1, 1].

    It is decoded in memory, by the formats and checks that all files go through.

    Raises:
        Problem: It is no image of these formats, damaged, too large or too small.
    """
    accepted = f"Send a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    try:
        with open_image(io.BytesIO(data)) as image:
            width, height = image.size
    except DECODE_ERRORS as error:
        raise Problem(
            400,
            field,
            f"expected an image, but it cannot be read ({short(error, 200)}).",
            f"{accepted}.",
        ) from error
    if width * height > max_pixels:
        raise Problem(
            413,
            field,
            f"expected at most {max_pixels} pixels, got {width}x{height}.",
            "Make the image smaller.",
        )
    try:
        return to_float(decode_image(io.BytesIO(data), "The image", shape, convert_channels=True))
    except TooSmallImageError as error:
        raise Problem(
            400,
            field,
            f"expected at least {shape[2]}x{shape[1]} pixels, got {width}x{height}.",
            "Send a larger image.",
        ) from error
    except ValueError as error:
        raise Problem(400, field, str(error), f"{accepted} that is whole.") from error
