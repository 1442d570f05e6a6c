"""Folders of images as datasets: flat, one subfolder a class, or split by hand.

Files are found once, in sorted order, and only their headers are read then; an image is decoded
when it is asked for. Only the formats below are tried, and links that lead out of the folder are
refused: a folder from a stranger can make reading fail, never reach another file.
"""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.data.images import ImageTensorDataset, Split, check_split, is_held_out

__all__ = ["EXTENSIONS", "ImageFolder"]

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What Pillow raises for damaged files of these formats, as found by damaging 45,000 of them, and
# what its readers are written to raise besides.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, OverflowError, Image.DecompressionBombError,
    EOFError, struct.error,
)  # fmt: skip
_EXIF_ORIENTATION = 0x0112
_EXIF_TRANSPOSED = (5, 6, 7, 8)


class CorruptImageError(ValueError):
    """An image file that cannot be decoded."""


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The images of a folder, resized to cover `image_size` and cropped to it from the centre.

    Three layouts are read: images directly in `root` (no labels: all are -1); one subfolder per
    class, its images at any depth, classes numbered in sorted order of their names; and either of
    them twice, under `root/train` and `root/held_out`, which then is the split. Without those two
    subfolders an image is held out by a hash of its path inside `root`. Hidden files and folders
    are passed over. Photographs are turned upright by their EXIF tag; transparency goes on white.

    Args:
        root: The folder.
        image_size: (height, width), or one number for both, in pixels.
        image_channels: 3 for RGB, 1 for grey.
        split: "train", "held_out" or "all".
        held_out_fraction: Share of the images to hold out, by hash.
        skip_corrupt: Leave out files that cannot be decoded, with one warning that counts them;
            their paths are in `skipped`. Decodes every file once to find them.
        convert_channels: Turn grey files to RGB or RGB files to grey where needed; without it a
            file of the other kind is an error.

    Item: uint8 `[C, H, W]` and the label.

    Raises:
        ValueError: No images; images both in `root` and in class folders; a class folder without
            images; a link that leads out of `root`; an image that is corrupt, smaller than
            `image_size` or of the wrong channel count (the file is named); an empty split.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: int | tuple[int, int],
        *,
        image_channels: int = 3,
        split: Split = "all",
        held_out_fraction: float = 0.1,
        skip_corrupt: bool = False,
        convert_channels: bool = False,
    ) -> None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"ImageFolder: image_size must be (height, width) >= 1, got {size}.")
        if image_channels not in (1, 3):
            raise ValueError(f"ImageFolder: image_channels must be 1 or 3, got {image_channels}.")
        if not 0.0 <= held_out_fraction < 1.0:
            raise ValueError(
                f"ImageFolder: held_out_fraction must be in [0, 1), got {held_out_fraction}."
            )
        check_split("ImageFolder", split)
        self.root = Path(root)
        self.image_shape = (image_channels, *size)
        self.convert_channels = convert_channels
        files, self.class_names = _find(self.root, split, held_out_fraction)

        # Files are checked before the first is used: an error belongs at the start of a run.
        self.skipped: tuple[str, ...] = ()
        kept: list[tuple[str, int]] = []
        for name, label in files:
            try:
                self._check_header(name)
                if skip_corrupt:
                    self._decode(name)
            except CorruptImageError:
                if not skip_corrupt:
                    raise
                self.skipped += (name,)
                continue
            kept.append((name, label))
        if self.skipped:
            warnings.warn(
                f"ImageFolder: skipped {len(self.skipped)} corrupt of {len(files)} images in "
                f"{self.root}, the first is {self.skipped[0]}.",
                stacklevel=2,
            )
        if not kept:
            raise ValueError(f"ImageFolder: all {len(files)} images of {self.root} are corrupt.")
        self.names = tuple(name for name, _ in kept)
        self.labels = torch.tensor([label for _, label in kept], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._decode(self.names[index]), int(self.labels[index])

    def in_memory(self) -> ImageTensorDataset:
        """All images decoded, for sets that fit: N·C·H·W bytes."""
        images = torch.stack([self._decode(name) for name in self.names])  # [N, C, H, W]
        return ImageTensorDataset(images, self.labels, self.class_names, self.names)

    def _check_header(self, name: str) -> None:
        """Raises if the file is no image, too small, or of the wrong channel count."""
        path = self.root / name
        try:
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                if image.getexif().get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED:
                    width, height = height, width
                mode = image.mode
        except _DECODE_ERRORS as error:
            raise _corrupt(path, error) from error
        channels, need_height, need_width = self.image_shape
        if height < need_height or width < need_width:
            raise ValueError(
                f"ImageFolder: {path} is {height}x{width} (height x width), smaller than "
                f"image_size {need_height}x{need_width}; remove it or use a smaller image_size."
            )
        if mode in ("I", "F"):
            raise ValueError(
                f"ImageFolder: {path} has 32-bit pixels (mode {mode}), whose range is not known; "
                "convert it to 8 or 16 bits."
            )
        found = 1 if mode in ("1", "L", "LA", "La") or mode.startswith("I;16") else 3
        if found != channels and not self.convert_channels:
            raise ValueError(
                f"ImageFolder: {path} has {found} channel(s) (mode {mode}), expected "
                f"image_channels={channels}; pass image_channels={found} or convert_channels=True."
            )

    def _decode(self, name: str) -> Tensor:
        """The image as uint8 `[C, H, W]`."""
        path = self.root / name
        channels, height, width = self.image_shape
        try:
            with Image.open(path, formats=_FORMATS) as image:
                pixels = _flatten(ImageOps.exif_transpose(image))
        except _DECODE_ERRORS as error:
            raise _corrupt(path, error) from error
        if pixels.width < width or pixels.height < height:
            raise ValueError(
                f"ImageFolder: {path} is {pixels.height}x{pixels.width} (height x width) now, "
                f"smaller than image_size {height}x{width}; it changed after it was found."
            )
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


def _corrupt(path: Path, error: BaseException) -> CorruptImageError:
    return CorruptImageError(
        f"ImageFolder: {path} cannot be decoded ({error}); remove it, or pass skip_corrupt=True "
        "to leave out such files."
    )


def _find(
    root: Path, split: Split, held_out_fraction: float
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Paths inside root (with /) and labels of the split, sorted by path, and the class names."""
    if not root.is_dir():
        raise ValueError(f"ImageFolder: {root} is not a folder.")
    sides = {"train", "held_out"}
    split_by_hand = all((root / side).is_dir() for side in sides)
    names = _images_under(root)
    if not names:
        raise ValueError(
            f"ImageFolder: no images in {root}; accepted extensions: {', '.join(EXTENSIONS)}."
        )
    if split_by_hand:
        stray = [name for name in names if name.split("/")[0] not in sides]
        if stray:
            raise ValueError(
                f"ImageFolder: {root} has train/ and held_out/ but also {stray[0]}; "
                "move it into one of them."
            )
        inner = [name.split("/", 1)[1] for name in names]
        class_roots = [root / side for side in sorted(sides)]
    else:
        inner, class_roots = names, [root]

    flat = sum("/" not in path for path in inner)
    if 0 < flat < len(inner):
        first = next(name for name, path in zip(names, inner, strict=True) if "/" not in path)
        raise ValueError(
            f"ImageFolder: {root} holds images both directly ({first}) and in class folders; "
            "move them all into class folders, or all out."
        )
    classes = () if flat else tuple(sorted({path.split("/")[0] for path in inner}))
    if classes:
        _check_class_folders(class_roots, classes)

    chosen = []
    for name, path in zip(names, inner, strict=True):
        held = (
            name.startswith("held_out/") if split_by_hand else is_held_out(name, held_out_fraction)
        )
        if split == "all" or held == (split == "held_out"):
            chosen.append((name, classes.index(path.split("/")[0]) if classes else -1))
    if not chosen:
        raise ValueError(
            f"ImageFolder: split {split!r} of {root} is empty ({len(names)} images, "
            f"held_out_fraction={held_out_fraction}); change held_out_fraction or add images."
        )
    return chosen, classes


def _images_under(root: Path) -> list[str]:
    """Sorted relative paths (with /) of the image files under root, hidden ones left out."""
    inside = root.resolve()
    names = []
    for folder, subfolders, files in os.walk(root, followlinks=False):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            if (Path(folder) / name).is_symlink():
                raise ValueError(
                    f"ImageFolder: {Path(folder) / name} is a link to a folder, which is not "
                    "followed; put the images themselves there, or remove the link."
                )
        for name in files:
            path = Path(folder) / name
            if name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise ValueError(
                    f"ImageFolder: {path} is a link out of {root}, which is not followed; "
                    "copy the image there, or remove the link."
                )
            names.append(path.relative_to(root).as_posix())
    return sorted(names)


def _check_class_folders(class_roots: list[Path], classes: tuple[str, ...]) -> None:
    """Raises for a class folder without images: classes would be numbered as if it were absent."""
    for class_root in class_roots:
        for entry in sorted(class_root.iterdir()):
            hidden = entry.name.startswith(".")
            if entry.is_dir() and not hidden and entry.name not in classes:
                raise ValueError(
                    f"ImageFolder: class folder {entry} has no images; remove it or add images "
                    f"({', '.join(EXTENSIONS)})."
                )
