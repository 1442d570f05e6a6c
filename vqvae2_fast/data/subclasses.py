"""Classes split into equal parts of images that look alike, each a class of its own.

A prior that is told the part of an image need not find out its shape and brightness code by code,
and its samples are nearer to real images. The parts of a class are the leaves of a tree of median
splits along the principal axis of its reduced images. So they are equally large, and to draw each
equally often is to draw the class as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.data.batches import in_order
from vqvae2_fast.data.groups import SEPARATOR
from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.data.protocols import ImageSource

__all__ = ["SubclassImages", "Subclasses"]

_SIDE = 16  # most pixels of a reduced image's side
_ROUNDS = 30  # of power iteration: it need not converge, since any wide axis will do
_BATCH = 256
_ONE_CLASS = "images"  # the class of a set without classes


@dataclass(frozen=True)
class _Split:
    """Images whose projection on the axis is below the threshold are on the left."""

    axis: Tensor  # float64 [F]
    threshold: float
    left: _Split | int  # a part's number
    right: _Split | int


@dataclass(frozen=True)
class Subclasses:
    """The parts of each class of a set.

    Args:
        class_names: Of the set that was split.
        count: Parts of a class.
        trees: One per class.
        labels: The part of each image of that set, int64 `[N]`; -1 for an image of no class.
    """

    class_names: tuple[str, ...]
    count: int
    trees: tuple[_Split | int, ...]
    labels: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, in the order of their labels."""
        width = len(str(self.count - 1))
        return tuple(
            f"{name}{SEPARATOR}{part:0{width}}"
            for name in self.class_names
            for part in range(self.count)
        )

    @classmethod
    def of(cls, images: ImageSource, count: int) -> Subclasses:
        """Splits each class of a set into `count` parts.

        Raises:
            ValueError: A class has fewer images than that, or too many that are equal; or count is
                below 1.
        """
        if count < 1:
            raise ValueError(f"subclasses: expected 1 or more, got {count}.")
        names, labels = images.class_names or (_ONE_CLASS,), _labels(images)
        features = _features(images)
        trees: list[_Split | int] = []
        parts = torch.full_like(labels, -1)
        for label, name in enumerate(names):
            own = (labels == label).nonzero()[:, 0]
            if len(own) < count:
                raise ValueError(
                    f"subclasses: expected {count} images of each class or more, and {name!r} has "
                    f"{len(own)}; take fewer parts."
                )
            # A set is known by its labels. In float32 the axes differ by 1e-6 with the number of
            # threads, which can move an image of a large set across a threshold.
            trees.append(_tree(features[own].double(), 0, count))
            leaves = list(_leaves(trees[-1], features, own))
            for rows, part in leaves:
                parts[rows] = label * count + part
            if not all(len(rows) for rows, _ in leaves):
                raise ValueError(
                    f"subclasses: expected images that differ, and too many of {name!r} are equal "
                    f"for {count} parts; take fewer parts, or each image once."
                )
        return cls(names, count, tuple(trees), parts)

    def split(self, images: ImageSource) -> SubclassImages:
        """Other images of the same classes, each in the part that it falls into.

        Raises:
            ValueError: The images have other classes.
        """
        if (images.class_names or (_ONE_CLASS,)) != self.class_names:
            raise ValueError(
                f"subclasses: expected images of the classes that were split "
                f"({short(', '.join(self.class_names))}), got images of "
                f"{short(', '.join(images.class_names)) or 'no class'}."
            )
        labels = _labels(images)
        parts = torch.full_like(labels, -1)
        features = _features(images)
        for label, tree in enumerate(self.trees):
            own = (labels == label).nonzero()[:, 0]
            for rows, part in _leaves(tree, features, own):
                parts[rows] = label * self.count + part
        return SubclassImages(images, parts, self.names)


@dataclass(frozen=True, eq=False)
class SubclassImages:
    """A set of images with other labels and class names."""

    images: ImageSource
    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.image_shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index][0], int(self.labels[index])


def _labels(images: ImageSource) -> Tensor:
    return (
        images.labels
        if images.class_names
        else torch.zeros(len(images), dtype=torch.int64, device="cpu")
    )


def _features(images: ImageSource) -> Tensor:
    """The images, reduced to at most 16x16 pixels: float32 `[N, F]`."""
    _, height, width = images.image_shape
    factor = (-(-height // _SIDE), -(-width // _SIDE))
    reduced = [F.avg_pool2d(batch, factor).flatten(1) for batch, _ in in_order(images, _BATCH)]
    return torch.cat(reduced)  # [N, C, h, w] -> [N, C h w]


def _tree(features: Tensor, first: int, count: int) -> _Split | int:
    """The parts `first` to `first + count - 1` of features float64 `[N, F]`, N >= count."""
    if count == 1:
        return first
    left = count // 2
    axis = _principal_axis(features)
    order = (features @ axis).argsort(stable=True)
    position = len(order) * left // count
    below, above = order[:position], order[position:]
    threshold = float((features[below[-1]] @ axis + features[above[0]] @ axis) / 2)
    return _Split(
        axis,
        threshold,
        _tree(features[below], first, left),
        _tree(features[above], first + left, count - left),
    )


def _principal_axis(features: Tensor) -> Tensor:
    """A unit vector `[F]` along which the features `[N, F]` vary much, by power iteration from the
    direction of the vector that is farthest from the mean."""
    centred = features - features.mean(0)
    axis = centred[centred.square().sum(1).argmax()]
    for _ in range(_ROUNDS):
        axis = F.normalize(centred.T @ (centred @ axis), dim=0)
    return axis


def _leaves(tree: _Split | int, features: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Pairs (rows, part) that share out the rows of features among the parts of a tree."""
    if isinstance(tree, int):
        yield rows, tree
        return
    below = features[rows].double() @ tree.axis < tree.threshold
    yield from _leaves(tree.left, features, rows[below])
    yield from _leaves(tree.right, features, rows[~below])
