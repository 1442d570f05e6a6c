"""The order of a prior's labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["LabelLayout"]

_Labels = TypeVar("_Labels", int, Tensor)


@dataclass(frozen=True)
class LabelLayout:
    """What a prior's labels stand for.

    First come the classes, then "no class", then the parts of all classes, then for each variant
    all classes and "no class" again, and last the words. A prior without classes has no labels.

    Args:
        num_classes, num_subclasses, num_variants, num_words: As of `PriorConfig`.
    """

    num_classes: int
    num_subclasses: int = 0
    num_variants: int = 0
    num_words: int = 0

    @property
    def count(self) -> int:
        if not self.num_classes:
            return 0
        return self.first_word + self.num_words

    @property
    def first_word(self) -> int:
        """The label of word 0, and how many labels there are without words."""
        return self._first_of_variants + self.num_variants * (self.num_classes + 1)

    @property
    def no_class(self) -> int:
        """The label for images without a class."""
        return self.num_classes

    @property
    def _first_of_variants(self) -> int:
        return self.num_classes + 1 + self.num_classes * self.num_subclasses

    def of_part(self, classes: _Labels, parts: _Labels) -> _Labels:
        """The labels of parts, counted from 0 in each class."""
        return self.no_class + 1 + classes * self.num_subclasses + parts

    def of_variant(self, labels: Tensor, variants: Tensor) -> Tensor:
        """The labels of changed images, without the parts of classes; variants count from 1."""
        of_class = torch.where(self.is_part(labels), self.class_of_part(labels), labels)
        return self._first_of_variants + (variants - 1) * (self.num_classes + 1) + of_class

    def is_part(self, labels: Tensor) -> Tensor:
        return (labels > self.no_class) & (labels < self._first_of_variants)

    def class_of_part(self, labels: Tensor) -> Tensor:
        """The classes that parts are of; without meaning for other labels."""
        return (labels - self.no_class - 1) // max(self.num_subclasses, 1)

    def lacks_class(self, labels: Tensor) -> Tensor:
        """Which labels are a "no class"."""
        return labels == self.without_class(labels)

    def without_class(self, labels: Tensor) -> Tensor:
        """The "no class" of images with these labels: each variant has one of its own."""
        place = (labels - self._first_of_variants) % (self.num_classes + 1)  # in its variant
        own = labels - place + self.no_class
        return torch.where(labels >= self._first_of_variants, own, self.no_class)
