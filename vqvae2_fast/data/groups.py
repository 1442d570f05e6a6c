"""Groups of classes: a set of images whose classes are the first parts of its class names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.files.printable import short
from vqvae2_fast.models.label_layout import LabelLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.data.protocols import ImageSource

__all__ = [
    "SEPARATOR",
    "GroupedImages",
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
    """What stands before the last " - ": the class of which `Subclasses` made this part."""
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
