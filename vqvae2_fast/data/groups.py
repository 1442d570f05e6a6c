"""Groups and parts of classes, which the names of classes tell.

A class "Food & Drink - food-fruit" belongs to the group "Food & Drink". `Subclasses` splits classes
into equal parts of images that look alike, each a class of its own ("Coat - 07"). A prior that is
given the part of an image need not find out its shape and brightness code by code, and its samples
are nearer to real images. The parts of a class are the leaves of a tree of median splits along the
principal axis of its reduced images. So they are equally large, and to draw each equally often is
to draw the class as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.data.batches import in_order
from vqvae2_fast.files.kinds import check_field, integer
from vqvae2_fast.files.printable import short
from vqvae2_fast.models.label_layout import LabelLayout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.data.images import ImageSource

__all__ = [
    "SEPARATOR",
    "GroupedImages",
    "SubclassImages",
    "Subclasses",
    "class_of_part",
    "classes_of_prior",
    "equal_groups",
    "group_names",
    "group_of",
    "groups_in_turn",
    "groups_of_classes",
    "labels_of_prior",
    "names_of_prior",
    "spread_over_groups",
]


SEPARATOR = " - "


def group_of(class_name: str) -> str:
    """What stands before " - ". A name without " - " is the name of its group."""
    return class_name.partition(SEPARATOR)[0]


def class_of_part(class_name: str) -> str:
    """What stands before the last " - ": the class that `Subclasses` split into such parts."""
    return class_name.rpartition(SEPARATOR)[0] or class_name


def group_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The groups of classes, each once and in the order of the classes."""
    return tuple(dict.fromkeys(map(group_of, class_names)))


def groups_of_classes(class_names: Sequence[str]) -> list[int]:
    """The number of each class's group in `group_names`."""
    numbers = {name: number for number, name in enumerate(group_names(class_names))}
    return [numbers[group_of(name)] for name in class_names]


def groups_in_turn(class_names: Sequence[str]) -> list[int]:
    """All classes, once each: the first class of every group, then the second of every group that
    has one, and so on. Without groups it is their own order."""
    turns: dict[int, int] = {}
    order = []
    for number, group in enumerate(groups_of_classes(class_names)):
        turn = turns[group] = turns.get(group, -1) + 1
        order.append((turn, group, number))
    return [number for _, _, number in sorted(order)]


def equal_groups(class_names: Sequence[str]) -> tuple[int, int]:
    """How many classes were split into parts, and how many parts each of them has.

    Raises:
        ValueError: The classes have different numbers of parts or only one part each, or there are
            no classes.
    """
    sizes = Counter(map(class_of_part, class_names))
    if len(set(sizes.values())) != 1 or 1 in sizes.values():
        found = ", ".join(f"{name}: {size}" for name, size in sizes.most_common()) or "no classes"
        raise ValueError(
            "parts: expected every class to have the same number of parts, two or more, got "
            f"{short(found, 200)}; make the codes with `vqvae2-fast extract --subclasses N`."
        )
    return len(sizes), len(class_names) // len(sizes)


def names_of_prior(
    class_names: Sequence[str], num_classes: int, num_subclasses: int = 0
) -> list[str]:
    """For each class the one of a prior that it is: the same, its group, or that it is a part of.

    Args:
        num_classes, num_subclasses: Of the prior, see `PriorConfig`.
    """
    if len(class_names) == num_classes:
        return list(class_names)
    groups = [group_of(name) for name in class_names]
    if num_subclasses or len(set(groups)) != num_classes:
        return [class_of_part(name) for name in class_names]
    return groups


def classes_of_prior(
    class_names: Sequence[str], num_classes: int, num_subclasses: int = 0
) -> tuple[str, ...]:
    """The classes of `names_of_prior`, each once and in their order."""
    return tuple(dict.fromkeys(names_of_prior(class_names, num_classes, num_subclasses)))


def labels_of_prior(
    class_names: Sequence[str], num_classes: int, num_subclasses: int = 0
) -> Tensor:
    """The label that a prior has for each class, int64 `[classes + 1]`; the last, which label -1
    reads, is "no class".

    They are those of `names_of_prior`. If the prior has parts, the number of a part is the place of
    a class among those of the same name.

    Args:
        num_classes, num_subclasses: Of the prior, see `PriorConfig`.
    """
    if len(class_names) == num_classes:
        return torch.arange(num_classes + 1, device="cpu")
    names = names_of_prior(class_names, num_classes, num_subclasses)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    layout = LabelLayout(num_classes, num_subclasses)
    places: Counter[str] = Counter()
    labels = []
    for name in names:
        part = layout.of_part(numbers[name], places[name])
        labels.append(part if num_subclasses else numbers[name])
        places[name] += 1
    return torch.tensor([*labels, layout.no_class], dtype=torch.int64, device="cpu")


def spread_over_groups(class_names: Sequence[str], count: int) -> list[list[int]]:
    """For each group, `count` of its classes, spread evenly over them and in their order; some more
    than once if there are fewer."""
    classes: list[list[int]] = [[] for _ in group_names(class_names)]
    for number, group in enumerate(groups_of_classes(class_names)):
        classes[group].append(number)
    return [[own[i * len(own) // count] for i in range(count)] for own in classes]


@dataclass(frozen=True, eq=False)
class GroupedImages:
    """A set of images with its classes joined to groups: "Food & Drink - food-fruit" and "Food &
    Drink - drink" become "Food & Drink"."""

    images: ImageSource

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.image_shape

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return group_names(self.images.class_names)

    @cached_property
    def labels(self) -> Tensor:
        # Label -1, which is no class, reads the last entry.
        return self._group_of_class[self.images.labels]

    @cached_property
    def _group_of_class(self) -> Tensor:
        return torch.tensor(
            [*groups_of_classes(self.images.class_names), -1], dtype=torch.int64, device="cpu"
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return image, int(self._group_of_class[label])


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
        check_field("subclasses", count, integer(1))
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
                "subclasses: expected images of the classes that were split "
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
