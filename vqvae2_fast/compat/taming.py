"""CompVis/taming-transformers' `VectorQuantizer2`: change the import and keep code and checkpoints.

    from vqvae2_fast.compat.taming import VectorQuantizer2 as VectorQuantizer

The codebook is learnt by its gradient. What differs: the search is exact, and ties take the lowest
index; z_q is the code itself, where the original's z + (e − z) is a rounding error away; nothing is
printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.ops.vector_quantize.op import straight_through

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["VectorQuantizer2"]


class VectorQuantizer2(nn.Module):
    """Quantiser of maps `[B, C, H, W]` by a codebook `embedding.weight` `[K, C]`.

    Args:
        n_e: K.
        e_dim: C.
        beta: β of the loss, mean((sg[z_q] − z)²) + β · mean((z_q − sg[z])²) with `legacy`. Without
            it β is the factor of the first term, as in https://arxiv.org/abs/1711.00937.
        remap: A .npy file of the codes that are in use, int `[U]`. Indices then count these.
        unknown_index: The index of a code that is not among them: a random one, "extra" for U, or
            a number.
        sane_index_shape: Return indices as `[B, H, W]`, not as one row.
        legacy: Where β stands.
    """

    used: Tensor

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        remap: str | os.PathLike[str] | None = None,
        unknown_index: Literal["random", "extra"] | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        self.n_e = n_e
        self.e_dim = e_dim
        self.beta = beta
        self.remap = remap
        self.unknown_index = unknown_index
        self.sane_index_shape = sane_index_shape
        self.legacy = legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)
        self.re_embed = n_e
        if remap is not None:
            self.register_buffer("used", torch.from_numpy(np.load(remap)))
            self.re_embed = len(self.used)
            if unknown_index == "extra":
                self.unknown_index = self.re_embed
                self.re_embed += 1

    def forward(
        self,
        z: Tensor,
        temp: float | None = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Quantise a map.

        Args:
            z: `[B, C, H, W]`, floating.
            temp, rescale_logits, return_logits: Of the original's Gumbel quantiser; only their
                defaults are accepted.

        Returns:
            z_q: `[B, C, H, W]`, straight through to z.
            loss: 0-d.
            perplexity, one-hot codes, indices: None, None, and int64 `[B·H·W]`; `[B·H·W, 1]` with
                `remap`; `[B, H, W]` with `sane_index_shape`.

        Raises:
            ValueError: z is not `[B, C, H, W]`, or an argument is not its default.
        """
        if temp not in (None, 1.0) or rescale_logits or return_logits:
            raise ValueError(
                "expected temp=None, rescale_logits=False and return_logits=False, which are for "
                f"GumbelQuantize, got {temp}, {rescale_logits} and {return_logits}."
            )
        if z.dim() != 4 or z.shape[1] != self.e_dim:
            raise ValueError(f"expected z [B, {self.e_dim}, H, W], got {list(z.shape)}.")
        with without_autocast(z.device):
            vectors = z.permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]
            codebook = self.embedding.weight
            indices = ops.nearest_code(vectors.detach(), codebook.detach())[0]  # [B, H, W]
            codes = F.embedding(indices, codebook)
            to_z = F.mse_loss(vectors, codes.detach().to(z.dtype))
            to_codes = F.mse_loss(codes, vectors.detach().to(codes.dtype))
            loss = to_z + self.beta * to_codes if self.legacy else self.beta * to_z + to_codes
            z_q = straight_through(vectors, codes.detach()).permute(0, 3, 1, 2).contiguous()
        if self.remap is not None:
            indices = self.remap_to_used(indices)
        if not self.sane_index_shape:
            indices = indices.flatten() if self.remap is None else indices.reshape(-1, 1)
        return z_q, loss, (None, None, indices)

    def remap_to_used(self, inds: Tensor) -> Tensor:
        """Codes, int64 `[B, ...]`, as places among the codes in use."""
        used = self.used.to(inds)
        place = torch.full((self.n_e,), -1, dtype=inds.dtype, device=inds.device)
        place[used] = torch.arange(len(used), dtype=inds.dtype, device=inds.device)
        new = place[inds]
        unknown = new < 0
        if self.unknown_index == "random":
            # On the CPU, as the original draws them.
            new[unknown] = torch.randint(self.re_embed, (int(unknown.sum()),), device="cpu").to(new)
        else:
            new[unknown] = int(self.unknown_index)
        return new

    def unmap_to_all(self, inds: Tensor) -> Tensor:
        """Places among the codes in use as codes; an extra one as the first code in use."""
        used = self.used.to(inds)
        return used[inds.masked_fill(inds >= len(used), 0)]

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None) -> Tensor:
        """Codes of int64 indices: with a shape (B, H, W, C) `[B, C, H, W]`, else as indices."""
        if self.remap is not None:
            indices = self.unmap_to_all(indices).reshape(-1)
        codes: Tensor = self.embedding(indices)
        return codes if shape is None else codes.view(*shape).permute(0, 3, 1, 2).contiguous()
