"""Inception score: how sure a classifier is of each image, and how evenly it uses its classes.

exp(E KL(p(y|x) ‖ p(y))), https://arxiv.org/abs/1606.03498. It looks at one set only, and rewards
images that were learnt by heart as much as new ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.metrics.estimates import GROUPS, Estimate, check_count, jackknife

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["inception_score"]

LEAST_IMAGES = 100
# How far a sum of probabilities may be from 1: bfloat16 rounds log(1/1000) by up to 0.016.
_TOLERANCE = 0.05


def inception_score(log_probabilities: Iterable[Tensor]) -> Estimate:
    """The score over all images, between 1 and the number of classes.

    It is computed over all images at once. The mean over ten splits, which is common, is lower by a
    bias that depends on the size of the splits.

    Args:
        log_probabilities: Batches of log p(y|x), `[B, classes]`.

    Raises:
        ValueError: There are fewer than 100 images, or the probabilities of an image do not sum
            to 1.
    """
    counts = torch.zeros(GROUPS, dtype=torch.float64, device="cpu")
    negative_entropy = torch.zeros(GROUPS, dtype=torch.float64, device="cpu")
    shares: Tensor | None = None  # [GROUPS, classes]
    for batch in log_probabilities:
        if batch.ndim != 2:
            raise ValueError(
                "expected batches of log probabilities [B, classes], got one of "
                f"{list(batch.shape)}: give a list of batches, [log_probabilities] for one."
            )
        logs = batch.detach().to("cpu", torch.float64)
        groups = (torch.arange(len(logs), device="cpu") + int(counts.sum())) % GROUPS
        probabilities = logs.exp()
        sums = probabilities.sum(1)
        if not ((sums - 1).abs() <= _TOLERANCE).all():
            raise ValueError(
                "expected log probabilities, whose exp sums to 1 for each image, "
                f"got sums from {sums.min():g} to {sums.max():g}: use logits.log_softmax(1) for "
                "logits."
            )
        if shares is None:
            shares = torch.zeros(GROUPS, logs.shape[1], dtype=torch.float64, device="cpu")
        counts.index_add_(0, groups, torch.ones(len(logs), dtype=torch.float64, device="cpu"))
        shares.index_add_(0, groups, probabilities)
        # 0 · log 0 is 0.
        terms = torch.where(probabilities > 0, probabilities * logs, 0.0).sum(1)
        negative_entropy.index_add_(0, groups, terms)
    images = int(counts.sum())
    check_count("inception_score", images, LEAST_IMAGES, "it is a mean over images")
    assert shares is not None
    totals = (counts.sum(), shares.sum(0), negative_entropy.sum())
    value = _score(*totals)
    parts = [
        _score(totals[0] - counts[g], totals[1] - shares[g], totals[2] - negative_entropy[g])
        for g in range(GROUPS)
    ]
    return jackknife(value, parts, images, least=1.0)


def _score(count: Tensor, shares: Tensor, negative_entropy: Tensor) -> float:
    marginal = shares / count
    entropy = torch.special.entr(marginal.clamp(min=0)).sum()
    return math.exp(float(negative_entropy / count + entropy))
