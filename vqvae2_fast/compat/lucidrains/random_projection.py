"""`RandomProjectionQuantizer` of lucidrains/vector-quantize-pytorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqvae2_fast.compat.lucidrains.vector_quantize import VectorQuantize

__all__ = ["RandomProjectionQuantizer"]


class RandomProjectionQuantizer(nn.Module):
    """Labels of BEST-RQ: nearest random codes of random projections, which do not learn.

    https://arxiv.org/abs/2202.01855

    Args:
        dim: Channels of the input.
        codebook_size, codebook_dim: Of each codebook.
        num_codebooks: Projections, each with a codebook.
        norm: Normalise the input to mean 0 and variance 1 first.
        kwargs: Further arguments of `VectorQuantize`.
    """

    rand_projs: Tensor

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        projections = torch.empty(num_codebooks, dim, codebook_dim)
        self.register_buffer("rand_projs", nn.init.xavier_normal_(projections))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False) if norm else nn.Identity()
        self.vq = VectorQuantize(
            dim=codebook_dim * num_codebooks,
            heads=num_codebooks,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            separate_codebook_per_head=True,
            **kwargs,
        )

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Labels int64 `[B, N]`, or `[B, N, num_codebooks]`, of x `[B, N, dim]`.

        With indices, which are such labels: their cross-entropy, 0-d.
        """
        dim = self.rand_projs.shape[1]
        if x.dim() != 3 or x.shape[-1] != dim:
            raise ValueError(
                f"expected x [B, N, dim] with dim={dim}, got "
                f"{list(x.shape)}: give single vectors as x[:, None]."
            )
        projected = torch.einsum("bnd,hde->bnhe", self.norm(x), self.rand_projs).flatten(2)
        self.vq.eval()
        found = self.vq(projected, indices=indices)
        labels: Tensor = found[1]
        return labels
