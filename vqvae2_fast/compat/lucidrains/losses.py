"""Losses of `VectorQuantize` beside the commitment, as the package computes them.

Letters: B batch, N positions, h codebooks, K codes, D codebook_dim.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.compat.lucidrains.codebook_steps import l2norm
from vqvae2_fast.modules.binary_entropy import entropy_of

if TYPE_CHECKING:
    from vqvae2_fast.compat.lucidrains.vector_quantize import VectorQuantize

__all__ = ["LossBreakdown", "Losses", "directed", "masked_error"]

LossBreakdown = namedtuple(
    "LossBreakdown", ["commitment", "codebook_diversity", "orthogonal_reg", "inplace_optimize"]
)


def directed(source: Tensor, target: Tensor, variance: float) -> Tensor:
    """source + ‖target − source‖ · u, u the direction of target − source with noise of a variance.

    The gradient is that of the length: DiVeQ, https://openreview.net/forum?id=KRVnpTbx7R.
    """
    error = target - source
    noised = error + variance**0.5 * torch.randn_like(error)
    return source + l2norm(noised).detach() * error.norm(dim=-1, keepdim=True)


def masked_error(quantized: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error of `[c, M, D]`, over the rows of mask `[c, M]`; 0 if there are none."""
    if mask is None:
        return F.mse_loss(quantized, target, reduction="mean" if target.numel() else "sum")
    error = F.mse_loss(quantized, target, reduction="none").mean(-1)  # [c, M]
    return error.where(mask, 0.0).sum() / mask.sum().clamp(min=1)


def _orthogonal(codes: Tensor) -> Tensor:
    """Mean squared cosine of codes `[h, K, D]`, less that of each with itself: eq. 2 of
    https://arxiv.org/abs/2112.00384."""
    heads, count, _ = codes.shape
    unit = l2norm(codes)
    # Σ over pairs of (u·v)² is the squared norm of UᵀU, which is D×D.
    squares = (unit.mT @ unit).square().sum()
    return squares / (heads * count**2) - 1 / count


class Losses:
    """The losses of one forward.

    Args:
        module: Whose weights and flags they have.
        sequence: `[B, N, dim]`.
        rows: What was quantised, `[c, M, D]`.
        mask, row_mask: bool `[B, N]` and `[c, M]`, or None.
        zero: 0-d.
    """

    def __init__(
        self,
        module: VectorQuantize,
        sequence: Tensor,
        rows: Tensor,
        mask: Tensor | None,
        row_mask: Tensor | None,
        zero: Tensor,
    ) -> None:
        self.module, self.sequence, self.rows = module, sequence, rows
        self.mask, self.row_mask, self.zero = mask, row_mask, zero

    def of_codes(self, distances: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of codes int64 `[B, ..., (h)]` by distances `[c, M, K]`; −1 is left out."""
        scores = self.module._per_head(distances, self.sequence)  # [B, N, h, K]
        total = F.cross_entropy(
            scores.flatten(0, 2), codes.flatten(), ignore_index=-1, reduction="sum"
        )
        return total / (codes != -1).sum().clamp(min=1)

    def of_forward(
        self,
        found: Tensor,
        codes: Tensor,
        row_indices: Tensor,
        distances: Tensor | None,
        topk: int | None,
    ) -> tuple[Tensor, LossBreakdown]:
        """The weighted sum, 0-d or with topk `[B, N, k]`, and its parts.

        Args:
            found: Codes `[c, M, (k,) D]`, with a gradient where the codebook learns by it.
            codes: int64 `[B, N, (h or k)]`.
            row_indices: int64 `[c, M, (k)]`.
        """
        module, zero = self.module, self.zero
        if not module.training:
            if topk is None:
                return zero * 1.0, LossBreakdown(zero, zero, zero, zero)
            commitment = self._of_each(found)
            weight = module.commitment_weight if module.has_commitment_loss else 1.0
            return commitment * weight, LossBreakdown(commitment, zero, zero, zero)
        # A compiled graph cannot make a leaf that requires a gradient; there the loss requires one
        # if its inputs do.
        loss = torch.zeros_like(zero, requires_grad=not torch.compiler.is_compiling())
        diversity = commitment = orthogonal = zero
        if module.codebook_diversity_loss_weight > 0 and self.sequence.numel():
            assert distances is not None
            diversity = self._diversity(distances)
            loss = loss + diversity * module.codebook_diversity_loss_weight
        if module.has_commitment_loss:
            commitment = self._commitment(found, codes, distances, topk)
            loss = loss + commitment * module.commitment_weight
        if module.orthogonal_reg_weight > 0:
            orthogonal = self._orthogonality(row_indices)
            loss = loss + orthogonal * module.orthogonal_reg_weight
        return loss, LossBreakdown(commitment, diversity, orthogonal, zero)

    def _commitment(
        self, found: Tensor, codes: Tensor, distances: Tensor | None, topk: int | None
    ) -> Tensor:
        if self.module.commitment_use_cross_entropy_loss:
            assert distances is not None
            if self.mask is not None:
                kept = self.mask.view(*self.mask.shape, *[1] * (codes.dim() - 2))
                codes = codes.masked_fill(~kept, -1)
            return self.of_codes(distances, codes)
        if topk is not None:
            return self._of_each(found)
        # The package compares masked vectors with its original input, which is not normalised.
        apart = self.module.heads > 1 or self.module.has_projections
        as_it_came = self.mask is not None and not apart
        target = self.sequence.reshape(self.rows.shape) if as_it_came else self.rows
        return masked_error(found, target, self.row_mask)

    def _of_each(self, found: Tensor) -> Tensor:
        """Mean squared error of each of k codes, `[1, M, k, D]` -> `[B, N, k]`, 0 where masked."""
        target = self.rows[:, :, None].expand_as(found)
        error = F.mse_loss(found, target, reduction="none").mean(-1)
        error = error.view(*self.sequence.shape[:2], error.shape[-1])
        return error if self.mask is None else error.where(self.mask[..., None], 0.0)

    def _diversity(self, distances: Tensor) -> Tensor:
        """Minus the mean over positions of the entropy of the codes' share over the batch."""
        prob = (distances * self.module.codebook_diversity_temperature).softmax(-1)
        length = self.sequence.shape[1]
        share = prob.unflatten(1, (-1, length)).mean((0, 1))  # [N, K]
        return -entropy_of(share, 1e-5).sum(-1).mean()

    def _orthogonality(self, row_indices: Tensor) -> Tensor:
        module = self.module
        codes = module._codebook.embed
        if module.orthogonal_reg_active_codes_only:
            if row_indices.numel() == 0:
                return self.zero
            if len(codes) > 1:
                raise ValueError(
                    "VectorQuantize: expected one codebook with orthogonal_reg_active_codes_only, "
                    f"got {len(codes)} (separate_codebook_per_head)."
                )
            codes = codes[:, row_indices.unique()]
        most = module.orthogonal_reg_max_codes
        if most is not None and codes.shape[1] > most:
            codes = codes[:, torch.randperm(codes.shape[1], device=codes.device)[:most]]
        return _orthogonal(codes)
