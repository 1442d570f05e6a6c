"""Images in memory, the conversion between bytes and [-1, 1], and the held-out split by hash.

What all image sources share is here too: the checks of their arguments, labels and class names, and
the fingerprint by which two sets are compared.
"""

from __future__ import annotations

import hashlib
import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.files.kinds import check_field, number, one_of
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.ops._checks import dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = [
    "MAX_CLASSES",
    "MAX_CLASS_NAME",
    "CodeSource",
    "ImageSource",
    "ImageSubset",
    "ImageTensorDataset",
    "Split",
    "check_class_names",
    "check_image_source",
    "evenly",
    "fingerprint",
    "held_out_of",
    "is_held_out",
    "spread_evenly",
    "stable_hash",
    "to_float",
    "to_uint8",
]


class ImageSource(Protocol):
    """A set of images to train on: an `ImageTensorDataset`, an `ImageFolder`, ... or your own.

    An item is one image, uint8 `[C, H, W]`, and its label; `labels` is int64 `[N]`, -1 for none.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def check_image_source(argument: str, images: ImageSource) -> None:
    """Raises TypeError for what is no set of images, such as an array."""
    if not hasattr(images, "image_shape"):
        raise TypeError(
            f"expected {argument} to be a set of images, such as an ImageFolder, got "
            f"{type(images).__name__}. Make one of an array: ImageTensorDataset(images, labels, "
            "class_names), with uint8 images [N, C, H, W]."
        )


class CodeSource(Protocol):
    """Records of codes to train on: a `CodeStore`, or one with other labels."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, /) -> tuple[list[Tensor], Tensor]: ...


Split = Literal["train", "held_out", "all"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "all")
# The largest public sets have 200,000 classes. A prior has an embedding for each.
MAX_CLASSES = 2**18
MAX_CLASS_NAME = 1024  # characters; ImageNet's longest name has 121
_SAMPLE = 32  # images that a fingerprint decodes


def to_float(images: Tensor) -> Tensor:
    """Maps bytes to [-1, 1]: 0 to -1, 255 to 1, as float32 on the same device.

    Args:
        images: uint8, any shape.

    Raises:
        TypeError: images is not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images, got {dtype_name(images.dtype)}.")
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Maps [-1, 1] to bytes, rounded to the nearest; values outside are clamped, NaN becomes 0.

    `to_uint8(to_float(x))` is x for every byte.

    Raises:
        TypeError: images is not floating point.
    """
    if not images.is_floating_point():
        raise TypeError(f"expected floating point images, got {dtype_name(images.dtype)}.")
    scaled = images.detach().to(torch.float32).add(1.0).mul_(127.5)
    return scaled.nan_to_num_(nan=0.0).clamp_(0.0, 255.0).round_().to(torch.uint8)


def stable_hash(text: str) -> int:
    """A 63-bit number from text: the head of SHA-256, the same on every machine and version."""
    # Names of files that are not UTF-8 hold surrogates in place of their bytes.
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def is_held_out(name: str, fraction: float) -> bool:
    """Whether a name is held out by its hash, as about `fraction` of all names are.

    Depends only on the name: adding files to a set moves none from one side to the other.
    """
    return stable_hash(name) < fraction * 2.0**63


def held_out_of(names: Sequence[str], fraction: float) -> list[bool]:
    """Whether each of the names is held out: by its hash, and at least one of two or more.

    In a small set the hash may hold out none. Then the name with the lowest hash is held out, and
    a warning says so.
    """
    held = [is_held_out(name, fraction) for name in names]
    if fraction > 0 and len(names) > 1 and not any(held):
        lowest = min(range(len(names)), key=lambda i: stable_hash(names[i]))
        held[lowest] = True
        warn_held_out(names[lowest], len(names), fraction)
    return held


def warn_held_out(name: str, count: int, fraction: float) -> None:
    """Warns that an image was held out although its hash does not hold it out."""
    warnings.warn(
        f"held_out_fraction={fraction} of {count} images holds out none by hash, so "
        f"{printable(name)} is held out.",
        stacklevel=2,
    )


def check_split(split: str, held_out_fraction: float = 0.0) -> None:
    """Raises ValueError unless split is one of `SPLITS` and the fraction lies in [0, 1)."""
    check_field("split", split, one_of(SPLITS))
    check_field("held_out_fraction", held_out_fraction, number(0, below=1))


def checked_shape(image_size: int | tuple[int, int], image_channels: int) -> tuple[int, int, int]:
    """(C, H, W) of images of a size, (height, width) or one number for both.

    Raises:
        ValueError: The size or the number of channels is not one of images.
    """
    sides = image_size if isinstance(image_size, Iterable) else (image_size, image_size)
    try:
        height, width = map(operator.index, sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(
            "image_size must be (height, width) >= 1, or one integer for both, got "
            f"{short(image_size)}."
        )
    check_field("image_channels", image_channels, one_of((1, 3)))
    return image_channels, height, width


def check_class_names(names: Sequence[str]) -> None:
    """Raises ValueError for more class names than a set may have, or one that is not a name.

    Names are kept in files, shown in terminals and painted into pictures.
    """
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{len(names)} classes; at most {MAX_CLASSES} are supported.")
    for label, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"class {label} is named by {short(type(name))}, not a string.")
        if len(name) > MAX_CLASS_NAME:
            raise ValueError(
                f"the name of class {label} has {len(name)} characters, at most "
                f"{MAX_CLASS_NAME} are supported: {short(name, 40)}"
            )
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(
                f"the name of class {label} is not Unicode text: {short(name)}; rename it."
            )


def fingerprint(source: ImageSource) -> str:
    """A fingerprint by which sets are compared: it changes with images, order, labels or names.

    It covers the labels and names of all images and the pixels of 32. It does not depend on where
    the set lies, on the times of its files, or on whether it is decoded, cached or in memory.
    """
    made = (
        tuple(source.image_shape),
        tuple(source.class_names),
        tuple(getattr(source, "names", ())),
        source.labels.tolist(),
    )
    digest = hashlib.sha256(repr(made).encode())
    count = len(source)
    for index in sorted({i * max(0, count - 1) // (_SAMPLE - 1) for i in range(_SAMPLE)}):
        if count:
            digest.update(source[index][0].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class ImageTensorDataset(Dataset[tuple[Tensor, int]]):
    """A labelled set of images in memory.

    Args:
        images: uint8 `[N, C, H, W]`, C = 1 or 3, on any device.
        labels: int64 `[N]`, -1 where there is none; without it all are -1.
        class_names: One name for each class, in the order of labels; empty without classes.
        names: One name for each image (a file's path in its folder, an emoji's key), or empty.

    Raises:
        TypeError: images is not uint8 or labels is not int64.
        ValueError: A shape is not the one above, a label is outside [-1, len(class_names)), or
            `check_class_names` refuses a name.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        class_names: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
    ) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"expected uint8 images, got {dtype_name(images.dtype)}.")
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"expected images [N, C, H, W] with C = 1 or 3, got {list(images.shape)}."
            )
        if labels is None:
            labels = torch.full((len(images),), -1, dtype=torch.int64, device="cpu")
        check_class_names(class_names)
        check_labels(labels, len(images), len(class_names))
        if names and len(names) != len(images):
            raise ValueError(f"expected {len(images)} names, one for each image, got {len(names)}.")
        self._images = images
        self.labels = labels
        self.class_names = tuple(class_names)
        self.names = tuple(names)

    @property
    def images(self) -> Tensor:
        return self._images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def fingerprint(self) -> str:
        """The fingerprint of the set: see `fingerprint`."""
        return fingerprint(self)


def check_labels(labels: Tensor, count: int, num_classes: int) -> None:
    """Raises unless labels is int64 `[count]` with values in [-1, num_classes)."""
    if labels.dtype != torch.int64:
        raise TypeError(f"expected int64 labels, got {dtype_name(labels.dtype)}.")
    if labels.shape != (count,):
        raise ValueError(f"expected labels [{count}], got {list(labels.shape)}.")
    if count == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"labels must be -1 (none) or in [0, {num_classes}), the number of class_names; "
            f"got values from {low} to {high}."
        )


@dataclass(frozen=True, eq=False)
class ImageSubset:
    """The images of a set at the given positions, in that order.

    Args:
        rows: Positions in `images`, int64 `[N]`.
    """

    images: ImageSource
    rows: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.image_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def labels(self) -> Tensor:
        return self.images.labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self.rows):
            raise IndexError(index)
        return self.images[int(self.rows[index])]


def evenly(count: int, most: int) -> Tensor:
    """At most `most` of the numbers below `count`, int64, at equal distances from first to last."""
    taken = min(count, most)
    return torch.arange(taken, device="cpu") * (count - 1) // max(taken - 1, 1)


def spread_evenly(images: ImageSource, most: int) -> ImageSource:
    """At most `most` images of a set, at equal distances from its first to its last."""
    if len(images) <= most:
        return images
    return ImageSubset(images, evenly(len(images), most))
