"""Labels for self-supervised training: nearest random codes of random projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.averages import initial_codebook
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.index_range import check_indices
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_mask,
    check_vectors,
    wide,
    with_masked,
)
from vqvae2_fast.ops.patch_conv2d.op import linear_in_one_order

__all__ = ["RandomProjectionQuantizer"]


class RandomProjectionQuantizer(Quantizer):
    """Labels of BEST-RQ: the nearest of K random unit vectors to a random projection of z.

    Nothing is learnt (section 3.1 of https://arxiv.org/abs/2202.01855): z is normalised to mean 0
    and variance 1, projected to d numbers by a fixed matrix of Xavier's normal distribution, and
    divided by its length. Its codes do not lead back to z, so it does not quantise in a VQ-VAE.

    Args:
        num_embeddings: K.
        embedding_dim: D of z.
        code_dim: d.
        seed: Of the matrix and the codes; equal seeds give equal labels.
    """

    codebook: Tensor
    projection: Tensor

    def __init__(
        self, num_embeddings: int, embedding_dim: int, code_dim: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        codes = initial_codebook(num_embeddings, code_dim, init="normal", seed=seed, stream=0)
        matrix = initial_codebook(embedding_dim, code_dim, init="normal", seed=seed, stream=1)
        self.register_buffer("codebook", F.normalize(codes, dim=-1))
        self.register_buffer("projection", matrix * (2 / (embedding_dim + code_dim)) ** 0.5)
        self.norm = nn.LayerNorm(embedding_dim, elementwise_affine=False)

    @torch.no_grad()
    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Label vectors.

        Args:
            z: `[..., D]`, floating.
            mask: bool `[...]`, True for the vectors that count. The others get code 0 and index −1.

        Returns:
            codes: `[..., d]`, of length one, without a gradient.
            indices: int64 `[...]`.
            loss: float32, 0-d: 0.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        indices = self.encode(z)
        check_mask(mask, z)
        z_q = self.codebook[indices].to(z.dtype)
        # These codes are no z: zeros stand for what does not count.
        z_q, indices = with_masked(z_q, indices, torch.zeros_like(z_q), mask)
        self.note_use(indices)
        return z_q, indices, torch.zeros((), dtype=torch.float32, device=z.device)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            matrix = self.projection.to(wide(z).dtype).T
            numbers = linear_in_one_order(self.norm(wide(z)), matrix)
            return ops.nearest_code(F.normalize(numbers, dim=-1), self.codebook)[0]

    def lookup(self, indices: Tensor) -> Tensor:
        """The unit codes of indices, `[..., d]`."""
        check_indices(indices, len(self.codebook))
        return self.codebook[indices]
