"""`LFQ`, `ResidualLFQ` and `GroupedResidualLFQ` of lucidrains/vector-quantize-pytorch.

What differs from the package: no matrix of vectors by codes is formed, except under `torch.func`;
in training `quantized` is exactly the code (the package's is a rounding error away); in a process
group the use of codes is that of all vectors, where the package divides its own by their number;
without vectors the entropies and the commitment are 0, where the package's are NaN.

The entropies have logarithms of at least 1e-5. A distribution over the K codes is the product of
one table of the upper and one of the lower bits (see `vqvae2_fast.modules.binary`); it is formed
for a few vectors at a time.

Letters: B batch, N positions, c codebooks, d bits, K = 2^d codes, Q quantisers.
"""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqvae2_fast.compat.lucidrains.residual import Grouped, Residual
from vqvae2_fast.files.kinds import check_field, number
from vqvae2_fast.modules.binary import (
    bits_of,
    entropy_of,
    mean_of_codes,
    mean_over_processes,
    tables_of_bits,
)
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.fsq import soft_clamp
from vqvae2_fast.modules.host import outside_graphs
from vqvae2_fast.modules.quantizer_interface import projections
from vqvae2_fast.ops import sign_quantize
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.ops._registry import transforms_are_active

__all__ = [
    "LEAST",
    "LFQ",
    "GroupedResidualLFQ",
    "LossBreakdown",
    "ResidualLFQ",
    "Return",
    "clamped_entropy",
]

# The package's logarithms are of at least this.
LEAST = 1e-5
# Numbers of a part: 1 MiB, half of a core's second cache.
_PART = 2**18


@outside_graphs(
    "(Tensor high, Tensor low, *, bool slopes) -> (Tensor, Tensor, Tensor)",
    fake=lambda high, low, **_: (high.new_empty(()), torch.empty_like(high), torch.empty_like(low)),
)
def lucidrains_entropy(high: Tensor, low: Tensor, *, slopes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Σ over vectors and codes of −p·log max(p, LEAST), with p = high·low, and its two gradients.

    Args:
        slopes: Whether the gradients are wanted; without it they are not written.
    """
    total = high.new_zeros(())
    dhigh, dlow = torch.empty_like(high), torch.empty_like(low)
    step = max(1, _PART // (high.shape[1] * low.shape[1]))
    for start in range(0, len(high), step):
        part = slice(start, start + step)
        upper, lower = high[part], low[part]
        p = upper[:, :, None] * lower[:, None, :]  # [n, H, L]
        logs = p.clamp(min=LEAST).log_()
        total -= torch.dot(p.flatten(), logs.flatten())
        if slopes:
            slope = logs.add_(p >= LEAST).neg_()
            dhigh[part] = torch.bmm(slope, lower[:, :, None]).squeeze(2)
            dlow[part] = torch.bmm(upper[:, None, :], slope).squeeze(1)
    return total, dhigh, dlow


class _ClampedEntropy(torch.autograd.Function):
    """The first result of `lucidrains_entropy`, differentiable once."""

    @staticmethod
    def forward(ctx: Any, high: Tensor, low: Tensor) -> Tensor:
        slopes = high.requires_grad or low.requires_grad
        total, dhigh, dlow = lucidrains_entropy(high, low, slopes=slopes)
        ctx.save_for_backward(dhigh, dlow)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, Tensor]:
        dhigh, dlow = ctx.saved_tensors
        return dtotal * dhigh, dtotal * dlow


def clamped_entropy(high: Tensor, low: Tensor) -> Tensor:
    """Mean over vectors of the entropy of high `[N, H]` × low `[N, L]`, in nats, 0-d; 0 of none."""
    total: Tensor
    if transforms_are_active():
        total = entropy_of(high[:, :, None] * low[:, None, :], LEAST).sum()
    else:
        total = _ClampedEntropy.apply(high, low)  # type: ignore[no-untyped-call]
    return total / max(len(high), 1)


Return = namedtuple("Return", ["quantized", "indices", "entropy_aux_loss"])
LossBreakdown = namedtuple("LossBreakdown", ["per_sample_entropy", "batch_entropy", "commitment"])


class _CosineLinear(nn.Module):
    """Products of vectors and weights of length one, times a scale."""

    def __init__(self, dim_in: int, dim_out: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(dim_in, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        return (F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=0)) * self.scale


class LFQ(nn.Module):
    """Lookup-free quantisation by signs, https://arxiv.org/abs/2310.05737.

    Args:
        dim: Channels of the input; by default c·d.
        codebook_size: K, a power of two; by default 2^dim.
        entropy_loss_weight, commitment_loss_weight, diversity_gamma: Of the parts of the loss.
        straight_through_activation: The gradient is that of this function.
        num_codebooks, keep_num_codebooks_dim: c, and whether indices keep a dimension of 1.
        codebook_scale: Absolute value of a code's numbers.
        frac_per_sample_entropy: Share of the vectors, drawn at random, that the entropies take.
        has_projections, projection_has_bias: Linear layers from dim to c·d and back; by default
            where these differ.
        soft_clamp_input_value: v of v·tanh(x/v), at least codebook_scale.
        cosine_sim_project_in, cosine_sim_project_in_scale: Project in by cosines.
        channel_first: The input is `[B, dim, ...]`; by default inputs of four dimensions are.
        experimental_softplus_entropy_loss, entropy_loss_offset: softplus(loss + offset) of the
            entropies.
        spherical: Vectors and codes of length codebook_scale (https://arxiv.org/abs/2406.07548).
        force_quantization_f32: Quantise in float32.
        orthogonal_rotation: Quantise in a random orthogonal basis.
    """

    mask: Tensor
    zero: Tensor
    codebook: Tensor
    orthogonal_rot: Tensor

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        straight_through_activation: nn.Module | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        soft_clamp_input_value: float | None = None,
        cosine_sim_project_in: bool = False,
        cosine_sim_project_in_scale: float | None = None,
        channel_first: bool | None = None,
        experimental_softplus_entropy_loss: bool = False,
        entropy_loss_offset: float = 5.0,
        spherical: bool = False,
        force_quantization_f32: bool = True,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        if codebook_size is None:
            if dim is None:
                raise ValueError("expected dim or codebook_size, got neither.")
            codebook_size = 2**dim
        bits = codebook_size.bit_length() - 1
        if codebook_size != 1 << bits:
            raise ValueError(
                f"expected codebook_size to be a power of 2, got {codebook_size}: use "
                f"{2 ** math.ceil(math.log2(codebook_size))}."
            )
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        if num_codebooks > 1 and not keep:
            raise ValueError(f"expected keep_num_codebooks_dim with num_codebooks={num_codebooks}.")
        check_field("frac_per_sample_entropy", frac_per_sample_entropy, number(high=1, above=0))
        check_field("codebook_scale", codebook_scale, number(above=0))
        if soft_clamp_input_value is not None:
            check_field("soft_clamp_input_value", soft_clamp_input_value, number(codebook_scale))
        inner = bits * num_codebooks
        dim = inner if dim is None else dim
        projects = dim != inner if has_projections is None else has_projections
        if dim != inner and not projects:
            raise ValueError(
                f"expected has_projections, or dim={inner}, the bits of codebook_size="
                f"{codebook_size} times num_codebooks={num_codebooks}, got dim={dim}."
            )
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if projects and cosine_sim_project_in:
            scale = cosine_sim_project_in_scale
            self.project_in = _CosineLinear(dim, inner, codebook_scale if scale is None else scale)
        elif projects:
            self.project_in = nn.Linear(dim, inner, bias=projection_has_bias)
        if projects:
            self.project_out = nn.Linear(inner, dim, bias=projection_has_bias)
        self.has_projections = projects
        self.dim = dim
        self.codebook_size = codebook_size
        self.codebook_dim = bits
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = keep
        self.channel_first = channel_first
        self.activation = straight_through_activation or nn.Identity()
        self.spherical = spherical
        self.orthogonal_rotation = orthogonal_rotation
        if orthogonal_rotation:
            rotation = torch.empty(bits, bits)
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(rotation))
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.diversity_gamma = diversity_gamma
        self.entropy_loss_weight = entropy_loss_weight
        self.codebook_scale = codebook_scale
        self.commitment_loss_weight = commitment_loss_weight
        self.soft_clamp_input_value = soft_clamp_input_value
        self.entropy_loss_offset = entropy_loss_offset
        self.experimental_softplus_entropy_loss = experimental_softplus_entropy_loss
        self.force_quantization_f32 = force_quantization_f32
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)
        every = bits_of(torch.arange(codebook_size), bits).float()
        self.register_buffer("codebook", self.bits_to_codes(every), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the codes."""
        return self.codebook.dtype

    @property
    def code_value(self) -> float:
        """Absolute value of a number of a returned code."""
        length = self.codebook_dim**0.5 if self.spherical else 1.0
        return self.codebook_scale / length

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """0 and 1 as −codebook_scale and codebook_scale."""
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def maybe_l2norm(self, x: Tensor) -> Tensor:
        """x `[..., d]` with a length of codebook_scale, if spherical."""
        return F.normalize(x, dim=-1) * self.codebook_scale if self.spherical else x

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """What `forward` returns for these indices in evaluation."""
        is_map = indices.dim() >= 3 + self.keep_num_codebooks_dim
        moves = is_map if self.channel_first is None else self.channel_first
        if not self.keep_num_codebooks_dim:
            indices = indices[..., None]
        bits = bits_of(indices, self.codebook_dim)
        codes = torch.where(bits, self.code_value, -self.code_value).to(self.dtype)
        if self.orthogonal_rotation:
            codes = codes @ self.orthogonal_rot.T
        codes = codes.flatten(-2)
        codes = self.project_out(codes) if project_out else codes
        return codes.movedim(-1, 1) if moves else codes

    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
    ) -> Any:
        """Quantise.

        Args:
            x: `[B, N, dim]`, or `[B, dim, ...]`; see channel_first.
            inv_temperature: Of the soft codes in the entropies.
            return_loss_breakdown: Return a `LossBreakdown`, too.
            mask: What the losses take: images or sequences, bool `[B]`, or vectors, `[B, N]`, N of
                a map being H·W. As in the package, the two entropies of `[B, N]` are equal: with
                diversity_gamma=1 they cancel.

        Returns:
            `Return`: quantized in x's shape and dtype, indices int64, and the loss, 0-d.
        """
        moves = x.dim() >= 4 if self.channel_first is None else self.channel_first
        x = x.movedim(1, -1) if moves else x
        if x.dim() < 2 or x.shape[-1] != self.dim:
            raise ValueError(f"expected dim={self.dim} channels, got x {list(x.shape)}.")
        positions = x.shape[:-1]
        x = x[:, None].flatten(1, -2)  # [B, N, dim], also of single vectors
        shapes = (x.shape[:1], x.shape[:2])
        if mask is not None and (mask.shape not in shapes or mask.dtype != torch.bool):
            raise ValueError(
                f"expected mask bool {list(shapes[0])}, or {list(shapes[1])}, the positions in a "
                f"row, got {list(mask.shape)} {dtype_name(mask.dtype)}."
            )
        x = self.project_in(x)
        if self.soft_clamp_input_value is not None:
            clamp = torch.as_tensor(self.soft_clamp_input_value, dtype=x.dtype, device=x.device)
            x = soft_clamp(x, clamp)
        x = x.unflatten(-1, (self.num_codebooks, self.codebook_dim))  # [B, N, c, d]
        if self.orthogonal_rotation:
            x = x @ self.orthogonal_rot
        x = self.maybe_l2norm(x)
        with without_autocast(x.device):
            dtype = x.dtype
            x = x.float() if self.force_quantization_f32 else x
            quantized, indices = sign_quantize(x, self.code_value)
            aux_loss, breakdown = self._losses(x, quantized, mask, inv_temperature)
            if self.training:
                source = self.activation(x)
                quantized = quantized + (source - source.detach())
            quantized = quantized.to(dtype)
        if self.orthogonal_rotation:
            quantized = quantized @ self.orthogonal_rot.T
        quantized = self.project_out(quantized.flatten(-2)).view(*positions, self.dim)
        indices = indices.view(*positions, self.num_codebooks)
        quantized = quantized.movedim(-1, 1) if moves else quantized
        indices = indices if self.keep_num_codebooks_dim else indices.squeeze(-1)
        result = Return(quantized, indices, aux_loss)
        return (result, breakdown) if return_loss_breakdown else result

    def _losses(
        self, x: Tensor, quantized: Tensor, mask: Tensor | None, inv_temperature: float
    ) -> tuple[Tensor, LossBreakdown]:
        """The weighted loss and its parts, of x and its codes `[B, N, c, d]`."""
        if not self.training:
            return self.zero * 1.0, LossBreakdown(self.zero, self.zero, self.zero)
        chosen = (x if mask is None else x[mask]).flatten(0, 1)  # [n, c, d]
        # A mask of vectors makes the package take each part of a vector for a vector of its own,
        # and the entropy of use for the mean of theirs.
        in_parts = mask is not None and mask.dim() == 2
        chosen = chosen[:, None] if in_parts else chosen
        if self.frac_per_sample_entropy < 1:
            count = int(len(chosen) * self.frac_per_sample_entropy)
            # The argsort is what the package compares; it holds each number once.
            order = torch.randn(len(chosen), dtype=torch.float32, device="cpu").argsort()
            chosen = chosen[(order < count).to(chosen.device)]
        # softmax(2·inv_temperature·x·c) over the codes c, by bits.
        logits = chosen * (4 * inv_temperature * self.code_value)
        tables = list(map(tables_of_bits, logits.unbind(1)))
        sample = torch.stack([clamped_entropy(*pair) for pair in tables]).mean()
        shares = [mean_over_processes(mean_of_codes(*pair), len(chosen)) for pair in tables]
        use = sample if in_parts else entropy_of(torch.stack(shares), LEAST).sum(-1).mean()
        loss = sample - self.diversity_gamma * use
        if self.experimental_softplus_entropy_loss:
            loss = F.softplus(loss + self.entropy_loss_offset)
        commitment = self.zero
        if self.commitment_loss_weight > 0:
            error = (x - quantized).square()
            error = error if mask is None else error[mask]
            commitment = error.sum() / max(error.numel(), 1)
        total = loss * self.entropy_loss_weight + commitment * self.commitment_loss_weight
        return total, LossBreakdown(sample, use, commitment)


class ResidualLFQ(Residual):
    """`LFQ` in a row, each of half the scale of the one before.

    Args:
        dim: Channels of the input; linear layers lead to the d bits and back.
        num_quantizers, codebook_size: Q and K.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: As of
            `Residual`.
        soft_clamp_input_value: Of the first `LFQ`; halved for each further one.
        kwargs: Further arguments of `LFQ`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_quantizers,
            quantize_dropout,
            quantize_dropout_cutoff_index,
            quantize_dropout_multiple_of,
        )
        bits = int(math.log2(codebook_size))
        self.dim = dim
        self.has_projections = bits != dim
        self.project_in, self.project_out = projections(dim, bits)
        self.layers = nn.ModuleList()
        clamp = soft_clamp_input_value
        for part in range(num_quantizers):
            layer = LFQ(dim=bits, codebook_scale=2**-part, soft_clamp_input_value=clamp, **kwargs)
            self.layers.append(layer)
            clamp = None if clamp is None else clamp * 0.5

    @property
    def codebooks(self) -> Tensor:
        return torch.stack([cast("LFQ", layer).codebook for layer in self.layers])

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantise x `[B, N, dim]`, or `[B, dim, ...]` without projections; see `LFQ`.

        Returns:
            quantized: x's shape.
            indices: int64 `[B, N, Q]` (or the positions of x and Q); −1 for dropped quantisers.
            losses: `[Q]`.
            codes: With return_all_codes, those of each quantiser.
        """
        if self.has_projections and (x.dim() != 3 or x.shape[-1] != self.dim):
            raise ValueError(
                f"expected x [B, N, dim] with dim={self.dim}, got {list(x.shape)}. "
                f"Only without projections (codebook_size=2**{self.dim}) does it take maps; else "
                "make them sequences: x.flatten(2).transpose(1, 2)."
            )
        x = self.project_in(x)
        drops = self.training and self.quantize_dropout and torch.is_grad_enabled()
        in_use = self._number_in_use(drops, rand_quantize_dropout_fixed_seed, x.device)
        residual, total = x, torch.zeros_like(x)
        indices, losses = [], []
        with without_autocast(x.device):
            for layer in self.layers[:in_use]:
                quantized, index, loss = layer(residual, mask=mask)
                residual = residual - quantized.detach()
                total = total + quantized
                indices.append(index)
                losses.append(loss)
        for _ in range(self.num_quantizers - in_use):
            indices.append(torch.full_like(indices[0], -1))
            losses.append(torch.zeros_like(losses[0]))
        found = torch.stack(indices, dim=-1)
        result = (self.project_out(total), found, torch.stack(losses, dim=-1))
        return (*result, self.get_codes_from_indices(found)) if return_all_codes else result


class GroupedResidualLFQ(Grouped):
    """A `ResidualLFQ` for each group of channels.

    Args:
        dim: Channels of the input.
        groups, accept_image_fmap: As of `Grouped`.
        kwargs: Arguments of `ResidualLFQ`.
    """

    def __init__(
        self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(dim, groups, accept_image_fmap)
        if accept_image_fmap:
            kwargs.setdefault("channel_first", True)  # by default, of four dimensions only
        for _ in range(groups):
            self.rvqs.append(ResidualLFQ(dim=dim // groups, **kwargs))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, return_all_codes: bool = False
    ) -> tuple[Any, ...]:
        """As `ResidualLFQ`, with indices and losses `[groups, ...]`, codes as a tuple."""
        return self._quantised(x, 2, mask=mask, return_all_codes=return_all_codes)
