"""`FSQ`, `ResidualFSQ` and `GroupedResidualFSQ` of lucidrains/vector-quantize-pytorch.

What differs from the package: `quantized` is exactly the grid's value (the package's is a rounding
error away), and tanh is computed as 2·σ(2z) − 1, so that a number within a rounding error of a
boundary may fall on its other side. Half precision is bounded in float32, whatever
`force_quantization_f32` says; the package with False then bounds a `preserve_symmetry` grid in it.

Of the residual ones:

- `GroupedResidualFSQ(accept_image_fmap=True)` quantises along the channels, as with
  `is_channel_first=True` (the package's own bounds and scales by the width).
- With `is_channel_first`, `return_all_codes` returns `[Q, B, H, W, d]` (the package takes W for
  the quantisers), and `keep_num_codebooks_dim` works there and with dropped quantisers.

Letters: B batch, N positions, c codebooks, Q quantisers, d numbers of a code, K codes.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from vqvae2_fast.compat.lucidrains.residual import Grouped, Residual
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.fsq import Grid, digits_to_values, soft_clamp
from vqvae2_fast.modules.quantizer_interface import projections, wide
from vqvae2_fast.ops import scalar_quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FSQ", "GroupedResidualFSQ", "ResidualFSQ"]

_MOST_CODES = 2**31
# That of `scalar_quantize`.
_BOUND_EPS = 1e-3


class FSQ(nn.Module):
    """Finite scalar quantisation, https://arxiv.org/abs/2309.15505.

    Args:
        levels: Values of each of the d numbers of a code.
        dim: Channels of the input; linear layers lead from them to c·d numbers and back.
        num_codebooks: c.
        keep_num_codebooks_dim: Indices keep a last dimension c = 1.
        scale: Kept as an attribute, without effect, as in the package.
        allowed_dtypes, force_quantization_f32: Other dtypes are quantised in float32.
        channel_first: The input is `[B, dim, ...]`; so are all inputs of four dimensions and more.
        projection_has_bias: Of the linear layers.
        return_indices: Otherwise indices are None, and K may be as large as one likes: above 2³¹,
            no method takes or returns indices.
        preserve_symmetry: Values spread evenly over [−1, 1]; needed for 2 levels.
        noise_dropout: Probability with which a number of a code gets noise in training.
        bound_hard_clamp: Clamp to [−1, 1] instead of tanh.
        orthogonal_rotation: Quantise in a random orthogonal basis.
    """

    _levels: Tensor
    _basis: Tensor | None
    orthogonal_rot: Tensor
    implicit_codebook: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        allowed_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
        channel_first: bool = False,
        projection_has_bias: bool = True,
        return_indices: bool = True,
        force_quantization_f32: bool = True,
        preserve_symmetry: bool = False,
        noise_dropout: float = 0.0,
        bound_hard_clamp: bool = False,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        if 2 in levels and not preserve_symmetry:
            raise ValueError(
                f"expected preserve_symmetry=True with a level of 2, got levels {list(levels)}."
            )
        if noise_dropout and not preserve_symmetry:
            raise ValueError("expected preserve_symmetry=True with noise_dropout.")
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        if num_codebooks > 1 and not keep:
            raise ValueError(f"expected keep_num_codebooks_dim with num_codebooks={num_codebooks}.")
        self.grid = Grid(tuple(levels), preserve_symmetry, bound_hard_clamp)
        self.register_buffer("_levels", torch.tensor(levels, dtype=torch.int32), persistent=False)
        has_indices = math.prod(levels) <= _MOST_CODES
        if return_indices and not has_indices:
            raise ValueError(
                f"expected levels with a product of at most 2**31, got {list(levels)}: use "
                "fewer levels, or FSQ with return_indices=False."
            )
        # Larger grids have no indices in int32, hence none to convert.
        basis = [math.prod(levels[:number]) for number in range(len(levels))]
        self.register_buffer(
            "_basis",
            torch.tensor(basis, dtype=torch.int32) if has_indices else None,
            persistent=False,
        )
        self.scale = scale
        self.preserve_symmetry = preserve_symmetry
        self.noise_dropout = noise_dropout
        self.codebook_dim = len(levels)
        self.num_codebooks = num_codebooks
        self.effective_codebook_dim = inner = len(levels) * num_codebooks
        self.keep_num_codebooks_dim = keep
        self.dim = inner if dim is None else dim
        self.channel_first = channel_first
        self.has_projections = self.dim != inner
        self.project_in, self.project_out = projections(self.dim, inner, projection_has_bias)
        self.return_indices = return_indices
        if return_indices:
            self.codebook_size = math.prod(levels)
            codes = self._indices_to_codes(torch.arange(self.codebook_size))
            self.register_buffer("implicit_codebook", codes, persistent=False)
        self.allowed_dtypes = allowed_dtypes
        self.force_quantization_f32 = force_quantization_f32
        self.bound_hard_clamp = bound_hard_clamp
        self.orthogonal_rotation = orthogonal_rotation
        if orthogonal_rotation:
            if len(set(levels)) > 1:
                warnings.warn(
                    f"orthogonal_rotation suits levels that are all equal, got {list(levels)}.",
                    stacklevel=2,
                )
            rotation = torch.empty(len(levels), len(levels))
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(rotation))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantise.

        Args:
            z: `[B, N, dim]`, or `[B, dim, ...]` with four dimensions or channel_first.

        Returns:
            quantized: z's shape and dtype.
            indices: int32 `[B, N]` (or the positions of z), and c where it is kept; or None.
        """
        moves = z.dim() >= 4 or self.channel_first
        x = z.movedim(1, -1) if moves else z
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"expected z [{'B, dim, ...' if moves else 'B, N, dim'}] with dim={self.dim}, "
                f"got {list(z.shape)}."
            )
        x = self.project_in(x).unflatten(-1, (self.num_codebooks, self.codebook_dim))
        if self.orthogonal_rotation:
            x = x @ self.orthogonal_rot
        with without_autocast(z.device):
            dtype = x.dtype
            forced = self.force_quantization_f32 and dtype not in self.allowed_dtypes
            x = x.float() if forced else wide(x)
            codes, indices = scalar_quantize(x, *self.grid, int32=True)
            codes = self.maybe_apply_noise(codes)
            if self.orthogonal_rotation:
                codes = codes @ self.orthogonal_rot.T
            codes = codes.flatten(-2).to(dtype)
        out = self.project_out(codes)
        out = out.movedim(-1, 1) if moves else out
        if not self.return_indices:
            return out, None
        return out, indices if self.keep_num_codebooks_dim else indices.squeeze(-1)

    def quantize(self, z: Tensor) -> Tensor:
        """The grid's values of z `[..., d]`."""
        return scalar_quantize(wide(z), *self.grid)[0]

    def bound(self, z: Tensor, eps: float = _BOUND_EPS, hard_clamp: bool = False) -> Tensor:
        """`quantize` on the grid without preserve_symmetry."""
        if eps != _BOUND_EPS:
            raise ValueError(f"expected eps={_BOUND_EPS}, which is fixed, got {eps}.")
        return scalar_quantize(wide(z), self.grid.levels, hard=hard_clamp)[0]

    def symmetry_preserving_bound(self, z: Tensor, hard_clamp: bool = False) -> Tensor:
        """`quantize` on the grid with preserve_symmetry."""
        return scalar_quantize(wide(z), self.grid.levels, symmetric=True, hard=hard_clamp)[0]

    def maybe_apply_noise(self, bounded_z: Tensor) -> Tensor:
        """Values of the grid with the noise of training."""
        if not self.training or not self.noise_dropout:
            return bounded_z
        chosen = torch.full_like(bounded_z, self.noise_dropout).bernoulli_().bool()
        offset = torch.rand_like(bounded_z) - 0.5
        return torch.where(chosen, bounded_z + offset, bounded_z).clamp(-1, 1)

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """The digit of each number: `[...]` -> `[..., d]`."""
        return (indices[..., None] // self._checked_basis()) % self._levels

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Indices int32 `[...]` of values `[..., d]`."""
        if self.preserve_symmetry:
            digits = (zhat + 1) / (2 / (self._levels - 1))
        else:
            digits = zhat * (self._levels // 2) + self._levels // 2
        return (digits * self._checked_basis()).sum(-1).round().to(torch.int32)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """What `forward` returns for these indices in evaluation."""
        codes = self._indices_to_codes(indices)
        if self.orthogonal_rotation:
            codes = codes @ self.orthogonal_rot.T
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        codes = self.project_out(codes)
        is_map = indices.dim() >= 3 + self.keep_num_codebooks_dim
        return codes.movedim(-1, 1) if is_map or self.channel_first else codes

    def _indices_to_codes(self, indices: Tensor) -> Tensor:
        digits = self.indices_to_level_indices(indices)
        return digits_to_values(self.grid, digits, torch.float32)

    def _checked_basis(self) -> Tensor:
        if self._basis is None:
            raise ValueError(
                "expected levels with a product of at most 2**31 for indices, got "
                f"{list(self.grid.levels)}."
            )
        return self._basis


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
