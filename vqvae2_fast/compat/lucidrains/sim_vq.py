"""`SimVQ` and `ResidualSimVQ` of lucidrains/vector-quantize-pytorch.

What differs from the package: the search is exact and forms no matrix of vectors by codes,
`quantized` is exactly the code (the package's rotated value is a rounding error away), and the loss
of an empty batch is 0 instead of NaN.

Letters: B batch, N positions, Q quantisers, K codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.compat.lucidrains.residual import Residual
from vqvae2_fast.compat.lucidrains.vector_quantize import masked_error
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ResidualSimVQ", "SimVQ"]


class SimVQ(nn.Module):
    """A fixed random codebook behind a learnt layer, https://arxiv.org/abs/2411.02038.

    Args:
        dim: Channels of the input.
        codebook_size: K.
        codebook_transform: Takes `[..., frozen_codebook_dim]` to `[..., dim]`; by default a linear
            layer without bias.
        init_fn: Takes the random codebook to the one that is used.
        channel_first: The input is `[B, dim, ...]`.
        rotation_trick: Gradient of https://arxiv.org/abs/2410.06424 instead of straight through.
        input_to_quantize_commit_loss_weight, commitment_weight: loss = commitment_weight ×
            (mean((sg[x] − e)²) + input_to_quantize_commit_loss_weight × mean((x − sg[e])²)).
        frozen_codebook_dim: Of the fixed codebook; by default dim.
    """

    frozen_codebook: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[Tensor], Tensor] | None = None,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.channel_first = channel_first
        frozen_dim = dim if frozen_codebook_dim is None else frozen_codebook_dim
        codebook = torch.randn(codebook_size, frozen_dim) * frozen_dim**-0.5
        codebook = codebook if init_fn is None else init_fn(codebook)
        if codebook_transform is None:
            codebook_transform = nn.Linear(frozen_dim, dim, bias=False)
        self.code_transform = codebook_transform
        self.register_buffer("frozen_codebook", codebook)
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight

    @property
    def codebook(self) -> Tensor:
        """`[K, dim]`, with a gradient to the layer."""
        codes: Tensor = self.code_transform(self.frozen_codebook)
        return codes

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """The codes of indices `[B, ...]`, in the layout of the input."""
        codes: Tensor = self.code_transform(self.frozen_codebook[indices])
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise.

        Args:
            x: `[B, ..., dim]`, or `[B, dim, ...]` with channel_first.

        Returns:
            quantized: x's shape and dtype.
            indices: int64, the positions of x.
            loss: 0-d.

        Raises:
            ValueError: x does not fit the layout.
        """
        codebook = self.codebook
        dim = codebook.shape[1]
        channels = x.shape[1:2] if self.channel_first else x.shape[-1:]
        if channels != (dim,):
            layout = "B, dim, ..." if self.channel_first else "B, ..., dim"
            raise ValueError(
                f"expected x [{layout}] with dim={dim}, got {list(x.shape)}. channel_first "
                "chooses the layout."
            )
        x = x.movedim(1, -1) if self.channel_first else x
        indices = ops.nearest_code(x.detach(), codebook.detach())[0]
        quantized = F.embedding(indices, codebook)
        loss = masked_error(quantized, x.detach(), None) + (
            masked_error(quantized.detach(), x, None) * self.input_to_quantize_commit_loss_weight
        )
        rows = quantized.detach().to(x.dtype)
        quantized = rotate_gradient(x, rows) if self.rotation_trick else rows + (x - x.detach())
        if self.channel_first:
            quantized = quantized.movedim(-1, 1)
        return quantized, indices, loss * self.commitment_weight


class ResidualSimVQ(Residual):
    """`SimVQ` in a row.

    Args:
        dim, codebook_size: Of each `SimVQ`.
        num_quantizers: Q.
        heads: 1.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: As of
            `Residual`.
        channel_first, rotation_trick, sim_vq_kwargs: Of each `SimVQ`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        channel_first: bool = False,
        rotation_trick: bool = True,
        **sim_vq_kwargs: Any,
    ) -> None:
        super().__init__(
            num_quantizers,
            quantize_dropout,
            quantize_dropout_cutoff_index,
            quantize_dropout_multiple_of,
        )
        if heads != 1:
            raise ValueError(f"expected heads=1, as in the package, got {heads}.")
        self.channel_first = channel_first
        self.layers = nn.ModuleList(
            SimVQ(
                dim=dim,
                codebook_size=codebook_size,
                rotation_trick=rotation_trick,
                channel_first=channel_first,
                **sim_vq_kwargs,
            )
            for _ in range(num_quantizers)
        )
        self.project_out = nn.Identity()

    @property
    def codebook_size(self) -> int:
        """K."""
        return cast("SimVQ", self.layers[0]).codebook_size

    @property
    def codebooks(self) -> Tensor:
        return torch.stack([cast("SimVQ", layer).codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        codes = super().get_codes_from_indices(indices)
        return codes.movedim(-1, 2) if self.channel_first else codes

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantise; see `SimVQ`.

        Returns:
            quantized: x's shape and dtype.
            indices: int64, the positions of x and Q; −1 for dropped quantisers.
            losses: `[Q]`.
            codes: With return_all_codes, those of each quantiser.
        """
        drops = self.training and self.quantize_dropout
        in_use = self._number_in_use(drops, rand_quantize_dropout_fixed_seed, x.device)
        residual, total = x, torch.zeros_like(x)
        indices, losses = [], []
        for layer in self.layers[:in_use]:
            quantized, index, loss = layer(residual)
            residual = residual - quantized.detach()
            total = total + quantized
            indices.append(index)
            losses.append(loss)
        for _ in range(self.num_quantizers - in_use):
            indices.append(torch.full_like(indices[0], -1))
            losses.append(torch.zeros_like(losses[0]))
        found = torch.stack(indices, dim=-1)
        result = (total, found, torch.stack(losses, dim=-1))
        return (*result, self.get_codes_from_indices(found)) if return_all_codes else result
