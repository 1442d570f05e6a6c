"""Decodes image files of the accepted formats to uint8 `[C, H, W]` of one size."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vqvae2_fast.data.images import to_uint8
from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DECODE_ERRORS",
    "FORMATS",
    "MAX_PIXELS",
    "CorruptImageError",
    "TooSmallImageError",
    "check_image",
    "cover",
    "decode_image",
    "decode_whole_image",
    "is_grey",
    "open_image",
    "pictures",
    "upright_size",
]

# The formats that every source accepts. Others start programs (EPS: Ghostscript) or are rare.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# As RGB this takes 512 MiB in Pillow. For larger photographs raise it, and also
# PIL.Image.MAX_IMAGE_PIXELS if they have more than 178 million pixels.
MAX_PIXELS = 2**27
# What Pillow raises for damaged files of these formats: found by damaging 45,000 of them, by giving
# others tags of wrong types, and by reading its code.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    OverflowError,
    Image.DecompressionBombError,
    EOFError,
    struct.error,
    TypeError,
    AttributeError,
    LookupError,
)
_STRIP_PIXELS = 2**20
_END_MARKS = {
    "GIF": b";",
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",  # a JPEG with further pictures, which telephones write
    "PNG": b"IEND\xaeB`\x82",
}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_EXIF_ORIENTATION = 0x0112
_TURNS = {  # what makes an image of this orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


class CorruptImageError(ValueError):
    """An image file that cannot be decoded."""


class _UnfitImageError(ValueError):
    """A sound image of a size or kind that was not asked for."""


class TooSmallImageError(_UnfitImageError):
    """An image that would have to be scaled up."""


@contextmanager
def open_image(file: IO[bytes]) -> Iterator[Image.Image]:
    """An image whose header is read; its pixels are decoded when they are asked for.

    Raises:
        DECODE_ERRORS: The file is of no such format, damaged, or has too many pixels.
    """
    try:
        with _limit_of_pillow():
            opened = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:  # which says only which Python object was read
        raise UnidentifiedImageError(f"it begins like none of {', '.join(FORMATS)}") from error
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.height}x{image.width} pixels are more than the {MAX_PIXELS} that are "
                "decoded; make it smaller"
            )
        yield image


@contextmanager
def _limit_of_pillow() -> Iterator[None]:
    """Raises the number of pixels from which Pillow warns, without a name of the file, to the one
    that it otherwise refuses: ours is below that. So it refuses twice as many, which bounds the
    memory that a header of a GIF can have it fill.

    Each change of a filter of warnings would make Python repeat those that it gives only once. A
    limit that Pillow enforces below ours, because somebody lowered it, stays.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or not limit < MAX_PIXELS <= 2 * limit:
        yield
        return
    Image.MAX_IMAGE_PIXELS = 2 * limit
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check_image(
    file: IO[bytes], source: str, image_shape: tuple[int, int, int], convert_channels: bool
) -> None:
    """Raises as `decode_image` would, judging by the header and the end of the file.

    It finds files that were cut, but not always those that are damaged in the middle.

    Args:
        file: Seekable, at its beginning.
    """
    try:
        with open_image(file) as image:
            height, width = upright_size(image)
            _check_mode(source, image, image_shape[0], convert_channels)
            if not _has_end(file, image):
                # Some writers append data or leave out the end mark; then decoding has to show it.
                file.seek(0)
                with open_image(file) as whole:
                    whole.load()
    except _UnfitImageError:
        raise
    except DECODE_ERRORS as error:
        raise CorruptImageError(f"{source} cannot be decoded ({short(error, 200)}).") from error
    _check_size(source, (height, width), image_shape)


def decode_image(
    file: IO[bytes], source: str, image_shape: tuple[int, int, int], convert_channels: bool
) -> Tensor:
    """The image upright, scaled to cover the size and cropped to it: uint8 `[C, H, W]`.

    Args:
        source: The name of the image, for messages.
        image_shape: (C, H, W), C = 1 or 3.
        convert_channels: Turn grey to RGB or RGB to grey where needed.

    Raises:
        CorruptImageError: It cannot be decoded.
        ValueError: It is smaller than the size, or of the wrong number of channels.
    """
    channels, height, width = image_shape
    with _upright(file, source, channels, convert_channels) as image:
        _check_size(source, (image.height, image.width), image_shape)
        mode = "L" if channels == 1 else "RGB"
        return _as_tensor(_converted(cover(_flatten(image, mode), height, width), mode))


def decode_whole_image(
    file: IO[bytes], source: str, channels: int, convert_channels: bool
) -> Tensor:
    """The image upright, of its own size: uint8 `[C, H, W]`. Raises as `decode_image`."""
    with _upright(file, source, channels, convert_channels) as image:
        mode = "L" if channels == 1 else "RGB"
        return _as_tensor(_converted(_flatten(image, mode), mode))


@contextmanager
def _upright(
    file: IO[bytes], source: str, channels: int, convert_channels: bool
) -> Iterator[Image.Image]:
    """The image turned by its EXIF tag; whatever its reader raises becomes CorruptImageError."""
    try:
        with open_image(file) as image:
            _check_mode(source, image, channels, convert_channels)
            image.load()  # a TIFF is turned by this
            turn = _TURNS.get(_orientation(image))
            if turn is None:
                yield image
                return
            turned = image.transpose(turn)
            image.close()  # one copy in memory is enough
            yield turned
    except _UnfitImageError:
        raise
    except DECODE_ERRORS as error:
        raise CorruptImageError(f"{source} cannot be decoded ({short(error, 200)}).") from error


def _as_tensor(image: Image.Image) -> Tensor:
    array = np.array(image, dtype=np.uint8).reshape(image.height, image.width, -1)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()  # [H, W, C] -> [C, H, W]


def _orientation(image: Image.Image) -> int:
    """The orientation that the image's tags give, or 1, which is upright, if they are damaged.

    `ImageOps.exif_transpose` would also write the tags anew, which fails if one is of a wrong type.
    """
    try:
        found = image.getexif().get(_EXIF_ORIENTATION)
    except DECODE_ERRORS:
        return 1
    return found if isinstance(found, int) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image as it is upright."""
    width, height = image.size
    if image.format == "TIFF":  # whose size is already that of the upright image in newer Pillows
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
    return (width, height) if _orientation(image) in _SWAPS_SIDES else (height, width)


def _check_size(source: str, size: tuple[int, int], image_shape: tuple[int, int, int]) -> None:
    _, height, width = image_shape
    if size[0] < height or size[1] < width:
        raise TooSmallImageError(
            f"{source} is {size[0]}x{size[1]} (height x width), smaller than image_size "
            f"{height}x{width}; remove it or use a smaller image_size."
        )


def _check_mode(source: str, image: Image.Image, channels: int, convert_channels: bool) -> None:
    # In a PPM mode I means up to 16 bits, which Pillow scales to 0..65535.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise _UnfitImageError(
            f"{source} has 32-bit pixels (mode {image.mode}), whose range is not known; "
            "convert it to 8 or 16 bits."
        )
    found = 1 if is_grey(image) else 3
    if found != channels and not convert_channels:
        raise _UnfitImageError(
            f"{source} has {found} channel(s) (mode {image.mode}), expected "
            f"image_channels={channels}; set convert_channels, or use a model and data of "
            f"image_channels={found}."
        )


def is_grey(image: Image.Image) -> bool:
    """Whether the pixels of an image, which need not be decoded yet, have one channel."""
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _has_end(file: IO[bytes], image: Image.Image) -> bool:
    """Whether the file ends as a complete one of its format does; False if that cannot be said."""
    size = file.seek(0, os.SEEK_END)
    if image.format == "WEBP":
        file.seek(4)
        return size >= 8 + int.from_bytes(file.read(4), "little")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        offsets, counts = tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
        ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]
        return bool(ends) and max(ends) <= size
    mark = _END_MARKS.get(image.format or "")
    if mark is None:
        return False
    file.seek(max(0, size - len(mark)))
    return file.read() == mark


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre of the image, scaled down (bicubic, antialiased) to just cover the size."""
    scale = min(image.width / width, image.height / height)
    left = (image.width - width * scale) / 2
    top = (image.height - height * scale) / 2
    box = (left, top, image.width - left, image.height - top)
    if scale == 1.0:  # crop at whole pixels: an offset of half a pixel would blur
        return image.crop((int(left), int(top), int(left) + width, int(top) + height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB: 16 bits to 8, palettes resolved, transparency over white.

    A grey one stays grey, because RGB takes four times the memory; it may be scaled before that.
    """
    if image.mode.startswith("I"):
        flat = _upper_bits(image)
    elif image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        flat = _over_white(image, "L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    else:
        flat = _converted(image, "L" if image.mode in ("1", "L") else "RGB")
    return flat if flat.mode == "L" else _converted(flat, mode)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _upper_bits(image: Image.Image) -> Image.Image:
    """16 bits per pixel rounded to 8, and a transparent value to white.

    Pillow's own conversion to L clips at 255 instead, and leaves such a value as it is.
    """
    transparent = image.info.get("transparency")
    flat = Image.new("L", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)  # in strips, since this takes float64 numbers
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        grey = (strip / 257.0 + 0.5).astype(np.uint8)
        if transparent is not None:
            grey[strip == transparent] = 255
        flat.paste(Image.fromarray(grey), (0, top))
    return flat


def _over_white(image: Image.Image, mode: str) -> Image.Image:
    # In strips, since this takes three images of 4 bytes per pixel.
    flat = Image.new(mode, image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        white.alpha_composite(strip)
        flat.paste(white.convert(mode), (0, top))
    return flat


def pictures(images: Tensor) -> list[Image.Image]:
    """Images `[N, C, H, W]` in [-1, 1] as pictures: grey for one channel, RGB for three."""
    pixels = to_uint8(images).cpu().permute(0, 2, 3, 1).numpy()  # [N, C, H, W] -> [N, H, W, C]
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
