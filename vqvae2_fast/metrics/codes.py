"""What codes of images tell: the use of codebooks, and what codes cost, in nats and bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.data import codes_in_order
from vqvae2_fast.files.kinds import check_field, integer
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.modules.contexts import device_of, evaluating

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqvae2_fast.data import CodeStore
    from vqvae2_fast.models.prior import Prior

__all__ = [
    "CodebookUse",
    "Likelihood",
    "code_counts",
    "code_nats",
    "codebook_use",
    "collision_rate",
    "entropy_of_counts",
    "marginal_entropy",
    "prior_labels",
    "prior_likelihood",
    "use_of_codes",
]


_BATCH = 4096  # records


@dataclass(frozen=True)
class CodebookUse:
    """Codes that occur at all, their share of the codebook, and the perplexity of their use.

    Perplexity is 2 to the entropy of the histogram in bits: the size of the codebook if all codes
    are used equally, 1 if a single one is used (sonnet `vqvae.py`, `perplexity`).
    """

    used: int
    share: float
    perplexity: float

    @classmethod
    def of_counts(cls, counts: Tensor) -> CodebookUse:
        """From how often each code occurs, int64 `[K]`."""
        used = int((counts > 0).sum())
        return cls(used, used / len(counts), 2.0 ** entropy_of_counts(counts))


def code_counts(codes: Tensor | Iterable[Tensor], num_embeddings: int) -> Tensor:
    """How often each code occurs in codes int64, one tensor or many of any shapes: int64 `[K]`.

    Raises:
        ValueError: A code outside 0..K−1, or K below 1.
    """
    check_field("num_embeddings", num_embeddings, integer(1))
    counts = torch.zeros(num_embeddings, dtype=torch.int64, device="cpu")
    for part in [codes] if isinstance(codes, Tensor) else codes:
        if not part.numel():
            continue
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= num_embeddings:
            raise ValueError(
                f"expected codes in 0..{num_embeddings - 1}, got values in {low}..{high}."
            )
        counts += torch.bincount(part.flatten(), minlength=num_embeddings).cpu()
    return counts


def entropy_of_counts(counts: Tensor) -> float:
    """Entropy in bits of a histogram, int64 `[K]`."""
    shares = counts[counts > 0].double() / counts.sum()
    return max(0.0, float(-(shares * shares.log2()).sum()))


def codebook_use(codes: Tensor | Iterable[Tensor], num_embeddings: int) -> CodebookUse:
    """Use of a codebook of `num_embeddings` by a set of codes int64, one tensor or many.

    Raises:
        ValueError: As `code_counts`.
    """
    return CodebookUse.of_counts(code_counts(codes, num_embeddings))


def collision_rate(codes: Tensor) -> float:
    """The share of items whose identifier, a row of codes int64 `[N, Q]`, an earlier item has.

    1 − distinct rows / rows, for recommenders that name an item by the Q codes of a `ResidualVQ`
    (https://arxiv.org/abs/2305.05065).

    Raises:
        ValueError: Codes that are not `[N, Q]`, or no item.
    """
    if codes.dim() != 2 or not len(codes):
        raise ValueError(f"expected codes [N, Q] of at least one item, got {list(codes.shape)}.")
    return 1 - len(codes.unique(dim=0)) / len(codes)


def use_of_codes(store: CodeStore) -> dict[str, CodebookUse]:
    """How much of its codebook each level of a store uses, by the level's name."""
    return {
        name: codebook_use(
            (maps[level] for maps, _ in codes_in_order(store, _BATCH)), store.num_embeddings
        )
        for level, name in enumerate(level_names(len(store.level_sizes)))
    }


@dataclass(frozen=True)
class Likelihood:
    """Mean cost of one level's codes in nats per code (the paper's unit), bits per code and per
    image."""

    nats_per_code: float
    bits_per_code: float
    bits_per_image: float

    @classmethod
    def of_sum(cls, nats: float, images: int, codes_per_image: int) -> Likelihood:
        """The mean costs, from the total cost in nats of all codes of a number of images."""
        each = nats / (images * codes_per_image)
        return cls(each, each / math.log(2), each / math.log(2) * codes_per_image)


def prior_likelihood(
    prior: Prior, batches: Iterable[tuple[list[Tensor], Tensor]], level: int
) -> Likelihood:
    """Mean negative log-likelihood of codes under a prior.

    Args:
        prior: The prior of one level.
        batches: Code maps coarse to fine, int64 `[B, h, w]` each, and labels `[B]`.
        level: Which of the maps the prior models, 0 the coarsest; those before it condition it.
    """
    nats, images, codes_per_image = 0.0, 0, 0
    with evaluating(prior):
        for maps, labels in batches:
            nats += code_nats(prior, maps, labels, level)
            images += len(labels)
            codes_per_image = maps[level][0].numel()
    if not images:
        raise ValueError("expected at least one batch of codes, got none.")
    return Likelihood.of_sum(nats, images, codes_per_image)


@torch.no_grad()
def code_nats(prior: Prior, maps: list[Tensor], labels: Tensor, level: int) -> float:
    """Cost in nats of all codes of one batch; the arguments are those of `prior_likelihood`, the
    prior in evaluation mode."""
    device = device_of(prior)
    codes = maps[level].to(device)
    condition = [coarser.to(device) for coarser in maps[:level]]
    logits = prior(codes, condition or None, prior_labels(prior, labels.to(device)))
    return float(F.cross_entropy(logits.float(), codes, reduction="none").sum(dtype=torch.float64))


def prior_labels(prior: Prior, labels: Tensor) -> Tensor | None:
    """Labels as a prior takes them: none without classes, "no class" for images without a label.

    Args:
        labels: int64 `[B]`, -1 for none; or `[B, 1 + W]` with words, the label a prior's own.
    """
    num_classes = prior.config.num_classes
    if not num_classes:
        return None
    if labels.dim() == 2:
        return labels
    return torch.where(labels < 0, num_classes, labels)


def marginal_entropy(codes: Tensor | Iterable[Tensor], num_embeddings: int) -> float:
    """Bits per code if each were coded by its own frequency in `codes`, whatever its position.

    This is the entropy of the histogram of `codes` itself: the least that a coder which knows
    neither neighbours nor classes could reach on exactly these codes. No real coder attains it,
    because it would have to know the histogram.
    """
    return entropy_of_counts(code_counts(codes, num_embeddings))
