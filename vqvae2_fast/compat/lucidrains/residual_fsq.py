"""`ResidualFSQ` and `GroupedResidualFSQ` of lucidrains/vector-quantize-pytorch.

What differs from the package:

- `GroupedResidualFSQ(accept_image_fmap=True)` quantises along the channels, as with
  `is_channel_first=True` (the package's own bounds and scales by the width).
- With `is_channel_first`, `return_all_codes` returns `[Q, B, H, W, d]` (the package takes W for
  the quantisers), and `keep_num_codebooks_dim` works there and with dropped quantisers.

Letters: B batch, N positions, Q quantisers, d numbers of a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from vqvae2_fast.compat.lucidrains.fsq import FSQ
from vqvae2_fast.compat.lucidrains.residual import Grouped, Residual
from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.modules.projections import projections
from vqvae2_fast.modules.residual_fsq import soft_clamp

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GroupedResidualFSQ", "ResidualFSQ"]

# What each grid of a residual quantiser needs of the arguments of `FSQ`.
_OF_GRIDS = {"return_indices": True, "num_codebooks": 1, "channel_first": False}


class ResidualFSQ(Residual):
    """Finer and finer grids, each of what the ones before left over.

    Args:
        levels: Values of each number of a code.
        num_quantizers: Q.
        dim: Channels of the input; linear layers lead to the numbers of a code and back.
        is_channel_first: The input is `[B, dim, ...]`.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: As of
            `Residual`.
        soft_clamp_input_value: c of c·tanh(x/c), for each number or for all; only without
            bound_hard_clamp, which has a c of its own.
        bound_hard_clamp: Clamp instead of tanh inside the grids.
        kwargs: Further arguments of `FSQ`.
    """

    scales: Tensor
    soft_clamp_input_value: Tensor | None

    def __init__(
        self,
        *,
        levels: Sequence[int],
        num_quantizers: int,
        dim: int | None = None,
        is_channel_first: bool = False,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | Sequence[float] | Tensor | None = None,
        bound_hard_clamp: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_quantizers,
            quantize_dropout,
            quantize_dropout_cutoff_index,
            quantize_dropout_multiple_of,
        )
        if min(levels) < 2:
            raise ValueError(f"expected levels of at least 2 values, got {list(levels)}.")
        if bound_hard_clamp and soft_clamp_input_value is not None:
            raise ValueError("expected soft_clamp_input_value only with bound_hard_clamp=False.")
        for name, expected in _OF_GRIDS.items():
            if kwargs.get(name, expected) != expected:
                raise ValueError(
                    f"expected {name}={expected}, got {kwargs[name]}: FSQ on its own takes others."
                )
        codebook_dim = len(levels)
        self.dim = dim = codebook_dim if dim is None else dim
        self.has_projections = codebook_dim != dim
        self.project_in, self.project_out = projections(dim, codebook_dim)
        self.is_channel_first = is_channel_first
        self.levels = levels
        self.layers = nn.ModuleList(
            FSQ(
                levels=levels,
                dim=codebook_dim,
                preserve_symmetry=True,
                bound_hard_clamp=bound_hard_clamp,
                **kwargs,
            )
            for _ in range(num_quantizers)
        )
        self.codebook_size = cast("FSQ", self.layers[0]).codebook_size
        counts = torch.tensor(levels)
        scales = torch.stack([counts.float() ** -number for number in range(num_quantizers)])
        self.register_buffer("scales", scales, persistent=False)
        bound = 1 + 1 / (counts - 1) if bound_hard_clamp else soft_clamp_input_value
        bound = None if bound is None else torch.as_tensor(bound)
        self.register_buffer("soft_clamp_input_value", bound, persistent=False)

    @property
    def codebooks(self) -> Tensor:
        return torch.stack([cast("FSQ", layer).implicit_codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        codes = super().get_codes_from_indices(indices)
        return codes * self.scales.view(len(codes), *[1] * (codes.dim() - 2), -1)

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantise.

        Args:
            x: `[B, N, dim]`, or `[B, dim, ...]` with is_channel_first.
            return_all_codes: Return the codes of each quantiser, too.
            rand_quantize_dropout_fixed_seed: Seed of the dropout.

        Returns:
            quantized: x's shape.
            indices: int32 `[B, N, Q]` (int64 with dropped quantisers, which have −1), or
                `[B, N, 1, Q]` with keep_num_codebooks_dim; with is_channel_first `[B, Q, ...]`,
                of which `get_codes_from_indices` and `get_output_from_indices` take
                `movedim(1, -1)`.
            codes: With return_all_codes, `[Q, B, N, d]`, where positions follow B as in indices.
        """
        moves = self.is_channel_first
        if x.dim() < 2 or x.shape[1 if moves else -1] != self.dim:
            raise ValueError(
                f"expected x [{'B, dim, ...' if moves else 'B, N, dim'}] with "
                f"dim={self.dim}, got {list(x.shape)}. is_channel_first chooses the layout."
            )
        x = x.movedim(1, -1) if moves else x
        x = self.project_in(x)
        if self.soft_clamp_input_value is not None:
            x = soft_clamp(x, self.soft_clamp_input_value)
        drops = self.training and self.quantize_dropout and torch.is_grad_enabled()
        in_use = self._number_in_use(drops, rand_quantize_dropout_fixed_seed, x.device)
        positions = x.shape[:-1]
        residual, total, indices = x, torch.zeros_like(x), []
        with without_autocast(x.device):
            for layer, scale in zip(self.layers[:in_use], self.scales, strict=False):
                # As sequences: a layer would take a map for one with channels first.
                quantized, index = layer((residual / scale)[:, None].flatten(1, -2))
                quantized = quantized.view(residual.shape) * scale
                residual = residual - quantized.detach()
                total = total + quantized
                # With keep_num_codebooks_dim a last 1 follows the positions.
                indices.append(index.view(*positions, *index.shape[2:]))
        for _ in range(self.num_quantizers - in_use):
            indices.append(torch.full_like(indices[0], -1, dtype=torch.int64))
        total, found = self.project_out(total), torch.stack(indices, dim=-1)
        codes = (self.get_codes_from_indices(found),) if return_all_codes else ()
        if moves:
            total, found = total.movedim(-1, 1), found.movedim(-1, 1)
        return (total, found, *codes)


class GroupedResidualFSQ(Grouped):
    """A `ResidualFSQ` for each group of channels.

    Args:
        dim: Channels of the input.
        groups, accept_image_fmap: As of `Grouped`.
        is_channel_first: As accept_image_fmap, which it equals by default.
        kwargs: Further arguments of `ResidualFSQ`.
    """

    def __init__(
        self,
        *,
        dim: int,
        groups: int = 1,
        accept_image_fmap: bool = False,
        is_channel_first: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, groups, accept_image_fmap)
        if is_channel_first not in (None, accept_image_fmap):
            raise ValueError(
                f"expected is_channel_first={accept_image_fmap} with "
                f"accept_image_fmap={accept_image_fmap}, got {is_channel_first}: both say where "
                "the channels are."
            )
        kwargs["is_channel_first"] = accept_image_fmap
        for _ in range(groups):
            self.rvqs.append(ResidualFSQ(dim=dim // groups, **kwargs))
        self.codebook_size = cast("ResidualFSQ", self.rvqs[0]).codebook_size

    def forward(self, x: Tensor, return_all_codes: bool = False) -> tuple[Any, ...]:
        """As `ResidualFSQ`, with a first dimension of groups in indices, and a tuple of codes."""
        return self._quantised(x, 1, return_all_codes=return_all_codes)
