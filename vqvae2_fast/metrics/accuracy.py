"""Accuracy of a classifier on labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.models.classifier import check_class_labels
from vqvae2_fast.modules.contexts import device_of, evaluating

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqvae2_fast.models.classifier import Classifier

__all__ = ["Accuracy", "classification_accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier is right.

    Args:
        top1, top5: Shares of images whose class is the likeliest, or among the five likeliest.
        low, high: 95 % interval of `top1`, by Wilson's formula.
        by_class: `top1` of each class, NaN for a class without images.
    """

    top1: float
    top5: float
    low: float
    high: float
    by_class: list[float]
    images: int


@torch.no_grad()
def classification_accuracy(
    model: Classifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> Accuracy:
    """Accuracy of a classifier.

    Args:
        batches: Images `[B, C, H, W]` in [-1, 1] with labels `[B]`.

    Raises:
        ValueError: There are no images, or labels outside the model's classes.
    """
    device = device_of(model)
    classes = model.config.num_classes
    hits = torch.zeros(classes, dtype=torch.int64, device="cpu")
    totals = torch.zeros_like(hits)
    among_five = 0
    with evaluating(model):
        for images, labels in batches:
            check_class_labels(labels, classes)
            ranked = model(images.to(device)).topk(min(5, classes), dim=1).indices.cpu()  # [B, 5]
            labels = labels.cpu()
            right = ranked[:, 0] == labels
            hits += torch.bincount(labels[right], minlength=classes)
            totals += torch.bincount(labels, minlength=classes)
            among_five += int((ranked == labels[:, None]).sum())
    count = int(totals.sum())
    if not count:
        raise ValueError("expected at least one image, got none.")
    top1 = int(hits.sum()) / count
    low, high = _wilson(top1, count)
    by_class = (hits.double() / totals).tolist()
    return Accuracy(top1, among_five / count, low, high, by_class, count)


def _wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval; SciPy, which has it, would be a large dependency for five lines."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return centre - reach, centre + reach
