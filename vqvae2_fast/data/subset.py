"""Part of a set of images, as a set: nothing is read before it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vqvae2_fast.data.protocols import ImageSource

__all__ = ["ImageSubset", "evenly", "spread_evenly"]


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
    """At most `most` images of a set, at equal distances from its first to its last.

    Raises:
        ValueError: most is not positive.
    """
    if most < 1:
        raise ValueError(f"most must be >= 1, got {most}.")
    if len(images) <= most:
        return images
    return ImageSubset(images, evenly(len(images), most))
