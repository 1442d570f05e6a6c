"""What codes cost under a prior, and under no model at all: nats and bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.metrics.codebook import code_counts
from vqvae2_fast.modules.device import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqvae2_fast.models.pixelsnail import PixelSNAIL

__all__ = ["Likelihood", "marginal_entropy", "prior_labels", "prior_likelihood"]


@dataclass(frozen=True)
class Likelihood:
    """Mean cost of one level's codes: nats a code (the paper's unit), bits a code and an image."""

    nats_per_code: float
    bits_per_code: float
    bits_per_image: float


@torch.no_grad()
def prior_likelihood(
    prior: PixelSNAIL, batches: Iterable[tuple[list[Tensor], Tensor]], level: int
) -> Likelihood:
    """Mean negative log-likelihood of codes under a prior.

    Args:
        prior: The prior of one level, in evaluation mode.
        batches: Code maps coarse to fine, int64 `[B, h, w]` each, and labels `[B]`.
        level: Which of the maps the prior models, 0 the coarsest; those before it condition it.
    """
    device = device_of(prior)
    total, images, codes_per_image = torch.zeros((), dtype=torch.float64, device=device), 0, 0
    for maps, labels in batches:
        codes = maps[level].to(device)
        condition = [codes.to(device) for codes in maps[:level]]
        logits = prior(codes, condition or None, prior_labels(prior, labels.to(device)))
        total += F.cross_entropy(logits.float(), codes, reduction="none").sum(dtype=torch.float64)
        images += len(codes)
        codes_per_image = codes[0].numel()
    if not images:
        raise ValueError("prior_likelihood: expected at least one batch of codes, got none.")
    nats = float(total) / (images * codes_per_image)
    bits = nats / math.log(2)
    return Likelihood(nats, bits, bits * codes_per_image)


def prior_labels(prior: PixelSNAIL, labels: Tensor) -> Tensor | None:
    """Labels as a prior takes them: none without classes, "no class" for images without a label."""
    num_classes = prior.config.num_classes
    if not num_classes:
        return None
    return torch.where(labels < 0, num_classes, labels)


def marginal_entropy(codes: Tensor | Iterable[Tensor], num_embeddings: int) -> float:
    """Bits a code if each were coded by its own frequency in `codes`, whatever its position.

    The entropy of the histogram of `codes` itself: the least that a coder which knows neither
    neighbours nor classes could reach on exactly these codes, so a prior is measured against a
    bound that no real coder without context attains.
    """
    counts = code_counts(codes, num_embeddings).double()
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * shares.log2()).sum()))
