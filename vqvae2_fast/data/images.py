"""Images in memory, the conversion between bytes and [-1, 1], and the held-out split by hash.

Folders of images are in folder.py, the embedded emoji in emoji.py, the order of training in
batches.py. A dataset here is anything with `len`, `labels` and `class_names` whose item is one
uint8 image `[C, H, W]` with its label.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ImageTensorDataset", "Split", "is_held_out", "stable_hash", "to_float", "to_uint8"]

Split = Literal["train", "held_out", "all"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "all")


def to_float(images: Tensor) -> Tensor:
    """Maps bytes to [-1, 1]: 0 to -1, 255 to 1, as float32 on the same device.

    Args:
        images: uint8, any shape.

    Raises:
        TypeError: images is not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"to_float: expected uint8 images, got {images.dtype}.")
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Maps [-1, 1] to bytes, rounded to the nearest; values outside are clamped, NaN becomes 0.

    `to_uint8(to_float(x))` is x for every byte.

    Raises:
        TypeError: images is not floating point.
    """
    if not images.is_floating_point():
        raise TypeError(f"to_uint8: expected floating point images, got {images.dtype}.")
    scaled = images.detach().to(torch.float32).add(1.0).mul_(127.5)
    return scaled.nan_to_num_(nan=0.0).clamp_(0.0, 255.0).round_().to(torch.uint8)


def stable_hash(text: str) -> int:
    """A 63-bit number from text: the head of SHA-256, the same on every machine and version."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def is_held_out(name: str, fraction: float) -> bool:
    """Whether the thing of this name is held out, for a share of about `fraction` of all names.

    Depends on the name alone: adding files to a set moves none from one side to the other.
    """
    return stable_hash(name) < fraction * 2.0**63


def check_split(op: str, split: str) -> None:
    """Raises ValueError unless split is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"{op}: split must be one of {', '.join(SPLITS)}, got {split!r}.")


class ImageTensorDataset(Dataset[tuple[Tensor, int]]):
    """A labelled set of images in memory.

    Args:
        images: uint8 `[N, C, H, W]`, C = 1 or 3, on any device.
        labels: int64 `[N]`, -1 where there is none; without it all are -1.
        class_names: One name a class, label order; empty for a set without classes.
        names: One name an image (a file's path in its folder, an emoji's key), or empty.

    Raises:
        TypeError: images is not uint8 or labels is not int64.
        ValueError: A shape is not the one above, or a label is outside [-1, len(class_names)).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        class_names: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
    ) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"ImageTensorDataset: expected uint8 images, got {images.dtype}.")
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "ImageTensorDataset: expected images [N, C, H, W] with C = 1 or 3, "
                f"got {list(images.shape)}."
            )
        if labels is None:
            labels = torch.full((len(images),), -1, dtype=torch.int64)
        check_labels("ImageTensorDataset", labels, len(images), len(class_names))
        if names and len(names) != len(images):
            raise ValueError(
                f"ImageTensorDataset: expected {len(images)} names, one an image, got {len(names)}."
            )
        self.images = images
        self.labels = labels
        self.class_names = tuple(class_names)
        self.names = tuple(names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def check_labels(op: str, labels: Tensor, count: int, num_classes: int) -> None:
    """Raises unless labels is int64 `[count]` with values in [-1, num_classes)."""
    if labels.dtype != torch.int64:
        raise TypeError(f"{op}: expected int64 labels, got {labels.dtype}.")
    if labels.shape != (count,):
        raise ValueError(f"{op}: expected labels [{count}], got {list(labels.shape)}.")
    if count == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"{op}: labels must be -1 (none) or in [0, {num_classes}), the number of class_names; "
            f"got values from {low} to {high}."
        )
