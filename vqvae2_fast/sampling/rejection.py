"""Rejection sampling: keep the drawn images of whose class a classifier is surest.

Section 3.3 of https://arxiv.org/abs/1906.00446: the score of an image is the probability that a
classifier gives its class. The images kept look more like their class and vary less; the share that
is kept sets the trade-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.models.classifier import check_class_labels
from vqvae2_fast.modules.contexts import device_of, evaluating

if TYPE_CHECKING:
    from vqvae2_fast.models.classifier import Classifier

__all__ = ["RejectionRule", "class_probability", "keep_share"]


@dataclass(frozen=True)
class RejectionRule:
    """Which candidates are kept: the best `keep` of every `among` in a row, or those with a
    probability of at least `threshold`.

    Only the `among` candidates of a group are compared, so any number of images can be drawn.

    Args:
        keep, among: 1 <= keep <= among. The candidates of a group are of one class.
        threshold: In [0, 1]; keep and among are then 1.

    Raises:
        ValueError: A value out of range.
    """

    keep: int = 1
    among: int = 1
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.among:
            raise ValueError(
                "expected to keep the best M of every N, 1 <= M <= N, got "
                f"best={self.keep} of every {self.among}."
            )
        if self.threshold is not None and (self.among != 1 or not 0 <= self.threshold <= 1):
            raise ValueError(
                "expected a threshold in [0, 1], and keep = among = 1 with it, got "
                f"threshold={self.threshold} with the best {self.keep} of every {self.among}."
            )

    def kept(self, probabilities: Tensor) -> Tensor:
        """Which candidates are kept: bool `[N]`. Ties keep the earlier candidate.

        Args:
            probabilities: Probability of each candidate's class, `[N]`; N is a multiple of `among`.

        Raises:
            ValueError: N is not a multiple of `among`.
        """
        if self.threshold is not None:
            return probabilities >= self.threshold
        if len(probabilities) % self.among:
            raise ValueError(
                f"expected whole groups of {self.among}, got {len(probabilities)} candidates."
            )
        groups = probabilities.reshape(-1, self.among)
        best = groups.sort(dim=1, descending=True, stable=True).indices[:, : self.keep]
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True).flatten()


@torch.no_grad()
def class_probability(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Probability of each image's own class, float32 `[B]` on the CPU.

    Args:
        images: `[B, C, H, W]` in [-1, 1].
        labels: int64 `[B]`.

    Raises:
        ValueError: A label that is not one of the classifier's classes.
    """
    check_class_labels(labels, classifier.config.num_classes)
    device = device_of(classifier)
    with evaluating(classifier):
        probabilities = classifier(images.to(device)).float().softmax(1)
    return probabilities.gather(1, labels.to(device)[:, None])[:, 0].cpu()


def keep_share(probabilities: Tensor, labels: Tensor, share: float) -> Tensor:
    """Rows of the best share of each class, ascending: one point of the trade-off curve.

    At least one row of each class is kept.

    Args:
        probabilities, labels: `[N]` each.
        share: In (0, 1].

    Raises:
        ValueError: share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"expected a share in (0, 1], got {share}.")
    rows = []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(own)))
        best = probabilities[own].sort(descending=True, stable=True).indices[:count]
        rows.append(own[best])
    return torch.cat(rows).sort().values
