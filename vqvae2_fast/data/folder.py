"""Folders of images as datasets: flat, with one subfolder per class, or split by hand.

Files are found once, in sorted order, and their headers and ends are read then; an image is decoded
when it is asked for. Links that lead out of the folder are refused: an untrusted folder can make
reading fail, but can never reach another file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.data.images import (
    ImageTensorDataset,
    Split,
    check_class_names,
    check_split,
    checked_shape,
    fingerprint,
    held_out_of,
)
from vqvae2_fast.data.pixels import (
    CorruptImageError,
    TooSmallImageError,
    check_image,
    decode_image,
    decode_whole_image,
)
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import NotRegularError, open_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EXTENSIONS", "ImageFolder", "image_names", "open_image_file", "whole_images"]

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SPLIT_NAMES = {"held_out", "test", "train", "training", "val", "valid", "validation"}
_DEAD_LINKS = {errno.ENOENT: "to nothing", errno.ELOOP: "that leads back to itself"}


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The images of a folder, resized to cover `image_size` and cropped to it from the centre.

    Three layouts are read: images directly in `root` (no labels: all are -1); one subfolder per
    class, its images at any depth, classes numbered in sorted order of their names; and either of
    them twice, under `root/train` and `root/held_out`, which then is the split. Without those two
    subfolders an image is held out by a hash of its path inside `root`; of two or more images at
    least one is. Hidden files and folders are passed over. Photographs are turned upright by their
    EXIF tag; transparency becomes white.

    Args:
        root: The folder.
        image_size: (height, width), or one number for both, in pixels.
        image_channels: 3 for RGB, 1 for grey.
        split: "train", "held_out" or "all".
        held_out_fraction: Share of the images to hold out, by hash.
        skip_corrupt: Leave out files that cannot be decoded, with one warning that counts them;
            their paths are in `skipped`. Decodes every file once to find them. Without it only the
            header and the end of each file are checked, which finds files that were cut.
        skip_small: Leave out images smaller than `image_size`, in the same way.
        convert_channels: Turn grey files to RGB or RGB files to grey where needed; without it a
            file of the other kind is an error.

    Item: uint8 `[C, H, W]` and the label.

    Raises:
        ValueError: No images; images both in `root` and in class folders; a class folder without
            images; folders of a split with other names than those two; a link that leads out of
            `root`; an image that is corrupt, smaller than `image_size` or of the wrong channel
            count (the file is named); an empty split.
        OSError: A file or folder that cannot be read.
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
        skip_small: bool = False,
        convert_channels: bool = False,
    ) -> None:
        shape = checked_shape(image_size, image_channels)
        check_split(split, held_out_fraction)
        self.root = Path(root)
        self.image_shape = shape
        self.convert_channels = convert_channels
        files, self.class_names = _find(self.root, split, held_out_fraction)

        # All files are checked before the first is used: an error belongs at the start of a run.
        kept: list[tuple[str, int]] = []
        corrupt: list[str] = []
        small: dict[str, TooSmallImageError] = {}
        for name, label in files:
            try:
                self._check(name)
                if skip_corrupt:
                    self._decode(name)
            except CorruptImageError:
                if not skip_corrupt:
                    raise
                corrupt.append(name)
            except TooSmallImageError as error:
                small[name] = error
            else:
                kept.append((name, label))
        kind = {"all": "images", "train": "training images", "held_out": "held-out images"}[split]
        if small and not skip_small:
            first = next(iter(small.values()))
            others = f" {len(small) - 1} more of the {len(files)} {kind} are too small."
            raise ValueError(
                f"{str(first)[:-1]}, or set skip_small to leave out such images."
                f"{others if len(small) > 1 else ''}"
            ) from first
        shown = printable(self.root)
        for found, what in ((corrupt, "corrupt"), (list(small), "too small")):
            if found:
                warnings.warn(
                    f"skipped {len(found)} of {len(files)} {kind} in {shown}, which "
                    f"are {what}; the first is {printable(found[0])}.",
                    stacklevel=2,
                )
        if not kept:
            reasons = [
                what for found, what in ((corrupt, "corrupt"), (small, "too small")) if found
            ]
            raise ValueError(f"all {len(files)} images of {shown} are {' or '.join(reasons)}.")
        self.skipped = tuple(sorted([*corrupt, *small]))
        self.names = tuple(name for name, _ in kept)
        self.labels = torch.tensor([label for _, label in kept], dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._decode(self.names[index]), int(self.labels[index])

    def fingerprint(self) -> str:
        """The fingerprint of the set: see `fingerprint`."""
        return fingerprint(self)

    def cache_key(self) -> str:
        """A key that changes with the files, their sizes and times, the classes and the decoding.

        Reads no file, only their entries, so that it is quick for any number of images.
        """
        made = (self.image_shape, self.convert_channels, self.class_names)
        digest = hashlib.sha256(repr(made).encode("utf-8", "surrogateescape"))
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            status = (self.root / name).stat()
            entry = (name, label, status.st_size, status.st_mtime_ns)
            digest.update(repr(entry).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def in_memory(self) -> ImageTensorDataset:
        """All images decoded, for sets that fit: N·C·H·W bytes."""
        images = torch.stack([self._decode(name) for name in self.names])  # [N, C, H, W]
        return ImageTensorDataset(images, self.labels, self.class_names, self.names)

    def _check(self, name: str) -> None:
        """Raises if the file is not an image, was cut, is too small or has the wrong channels."""
        with self._open(name) as (file, source):
            check_image(file, source, self.image_shape, self.convert_channels)

    def _decode(self, name: str) -> Tensor:
        """The image as uint8 `[C, H, W]`."""
        with self._open(name) as (file, source):
            return decode_image(file, source, self.image_shape, self.convert_channels)

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], str]]:
        """The file, and its path for messages."""
        path = self.root / name
        try:
            with open_image_file(path, self.root) as file:
                yield file, printable(path)
        except CorruptImageError as error:
            raise CorruptImageError(
                f"{str(error)[:-1]}; remove it, or set skip_corrupt to leave out such files."
            ) from error


def whole_images(
    path: Path, channels: int, skipped: list[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Name and pixels, uint8 `[C, H, W]`, of each image in a folder, or of one image. Each keeps
    its own size; grey and RGB are converted to what was asked for.

    Args:
        skipped: Images that cannot be decoded are left out, and their names are added here.

    Raises:
        ValueError: No images there, or none that can be decoded; a link that leads out of the
            folder; or, without `skipped`, an image that cannot be decoded. Names the file. Files
            that were cut are found before the first image comes.
    """
    root = path if path.is_dir() else path.parent
    inside = path if path.is_dir() else None  # one image may be named by a link
    names = image_names(path)
    for name in names if skipped is None else ():
        with _whole_image(root / name, inside) as (file, source):
            check_image(file, source, (channels, 1, 1), convert_channels=True)
    for name in names:
        try:
            with _whole_image(root / name, inside) as (file, source):
                pixels = decode_whole_image(file, source, channels, convert_channels=True)
        except CorruptImageError:
            if skipped is None:
                raise
            skipped.append(name)
            continue
        yield name, pixels
    if skipped is not None and len(skipped) == len(names):
        raise ValueError(f"all {len(names)} images of {printable(path)} are corrupt.")


@contextmanager
def _whole_image(path: Path, inside: Path | None) -> Iterator[tuple[IO[bytes], str]]:
    """The file of an image of any size, and its path for messages."""
    try:
        with open_image_file(path, inside) as file:
            yield file, f"{printable(path)}"
    except CorruptImageError as error:
        raise CorruptImageError(
            f"{str(error)[:-1]}; remove it, or set skip_corrupt to leave out such files."
        ) from error


def open_image_file(path: Path, inside: Path | None) -> IO[bytes]:
    """The file of an image; a FIFO or the like counts as corrupt, and so does a link to nothing."""
    try:
        return open_untrusted(path, inside=inside)
    except NotRegularError as error:
        raise CorruptImageError(str(error)) from error
    except OSError as error:
        if error.errno not in _DEAD_LINKS or not path.is_symlink():
            raise
        raise CorruptImageError(
            f"{printable(path)} is a link {_DEAD_LINKS[error.errno]}."
        ) from error


def image_names(path: Path) -> list[str]:
    """Sorted names of the images in a folder, relative to it, or of the one image.

    Raises:
        ValueError: No images there, or a link to a folder or out of it.
    """
    if not path.is_dir():
        return [path.name]
    return _images_under(path)


def _find(
    root: Path, split: Split, held_out_fraction: float
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Paths inside root (with /) and labels of the split, sorted by path, and the class names."""
    shown = printable(root)
    if not root.is_dir():
        raise ValueError(f"{shown} is not a folder.")
    sides = {"train", "held_out"}
    split_by_hand = all((root / side).is_dir() for side in sides)
    names = _images_under(root)
    if split_by_hand:
        stray = [name for name in names if name.split("/")[0] not in sides]
        if stray:
            raise ValueError(
                f"{shown} has train/ and held_out/ but also {printable(stray[0])}; "
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
            f"{shown} holds images both directly ({printable(first)}) and in class "
            "folders; move them all into class folders, or all out."
        )
    classes = () if flat else tuple(sorted({path.split("/")[0] for path in inner}))
    if classes:
        check_class_names(classes)
        _check_class_folders(class_roots, classes)
    if len(classes) > 1 and not split_by_hand and {c.lower() for c in classes} <= _SPLIT_NAMES:
        raise ValueError(
            f"{shown} holds {short(', '.join(classes))}, which are read as classes "
            "and look like a split; call the folder of training images train/ and that of images "
            "to hold out held_out/, and move all others away."
        )

    if split_by_hand:
        held = [name.startswith("held_out/") for name in names]
    elif split != "all":
        held = held_out_of(names, held_out_fraction)
    else:
        held = [False] * len(names)
    numbers = {name: number for number, name in enumerate(classes)}
    chosen = [
        (name, numbers.get(path.split("/")[0], -1))
        for name, path, out in zip(names, inner, held, strict=True)
        if split == "all" or out == (split == "held_out")
    ]
    if not chosen and split_by_hand:
        raise ValueError(
            f"{shown} has train/ and held_out/, but no images in {split}/; add some, "
            "or remove the empty folder to hold images out by hash."
        )
    if not chosen:
        raise ValueError(
            f"split {split!r} of {shown} is empty ({len(names)} images, "
            f"held_out_fraction={held_out_fraction}); change held_out_fraction or add images."
        )
    return chosen, classes


def _images_under(root: Path) -> list[str]:
    """Sorted relative paths (with /) of the image files under root, hidden ones left out.

    Raises:
        ValueError: No images there, a link to a folder, or a link out of root.
        OSError: A folder that cannot be read.
    """
    inside = root.resolve()
    names = []

    def refuse(error: OSError) -> None:
        raise error  # os.walk would leave out what is in a folder that cannot be read

    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=False):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            if (Path(folder) / name).is_symlink():
                raise ValueError(
                    f"{printable(Path(folder) / name)} is a link to a folder, which "
                    "is not followed; put the images themselves there, or remove the link."
                )
        for name in files:
            path = Path(folder) / name
            if name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
                continue
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise ValueError(
                    f"{printable(path)} is a link out of {printable(root)}, which is "
                    "not followed; copy the image there, or remove the link."
                )
            names.append(path.relative_to(root).as_posix())
    if not names:
        raise ValueError(
            f"no images in {printable(root)}; accepted extensions: "
            f"{', '.join(EXTENSIONS)}. Name a folder that holds some, itself or in subfolders."
        )
    return sorted(names)


def _check_class_folders(class_roots: list[Path], classes: tuple[str, ...]) -> None:
    """Raises for a class folder without images: classes would be numbered as if it were absent."""
    for class_root in class_roots:
        for entry in sorted(class_root.iterdir()):
            hidden = entry.name.startswith(".")
            if entry.is_dir() and not hidden and entry.name not in classes:
                raise ValueError(
                    f"class folder {printable(entry)} has no images; remove it or add "
                    f"images ({', '.join(EXTENSIONS)})."
                )
