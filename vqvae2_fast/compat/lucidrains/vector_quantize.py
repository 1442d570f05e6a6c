"""`VectorQuantize` of lucidrains/vector-quantize-pytorch, on our operators.

Change `from vector_quantize_pytorch import VectorQuantize` to import from here, and keep your code
and your state dicts. The tests compare the module with the package itself. What differs:

- No N×K matrix is formed, and a step reads no count on the host (with `mask` it waits once).
- The search is exact, and ties take the lowest index (the package's distances are float32 roots).
- `quantized` is the exact codebook row in training too, with the package's gradient; the package's
  rotated or straight-through value is a rounding error away. The codebook then moves, so in
  training `quantized` equals `codebook[indices]` as it was before the update.
- `mask` works together with projections or heads, where the package's shapes do not fit.
- An empty batch has a loss of 0, where the package's is NaN, and does not start a codebook.
- Where a batch has fewer vectors than there are dead codes, both replace a random choice of the
  codes, not the same one.
- `perplexity` and `usage` say how the latest batch used the codes.
- `torch.compile` makes one graph of a training step without a mask.

Letters: B batch, N positions, h heads, K codes, D codebook_dim.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.compat.lucidrains.arguments import OTHER_ARGUMENTS, refuse_others
from vqvae2_fast.compat.lucidrains.codebook import Codebook
from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.ops._rotation import rotate_gradient

__all__ = ["LossBreakdown", "VectorQuantize"]

LossBreakdown = namedtuple(
    "LossBreakdown", ["commitment", "codebook_diversity", "orthogonal_reg", "inplace_optimize"]
)


class VectorQuantize(nn.Module):
    """Vector quantiser with a codebook of moving averages.

    Args:
        dim: Channels of the input.
        codebook_size: K.
        codebook_dim: D of one head. If heads × D is not dim, linear layers project in and out.
        heads: Parts of a vector that are quantised on their own, by one codebook or, with
            `separate_codebook_per_head`, by one each.
        decay, eps: γ and ε of the moving averages.
        freeze_codebook: Do not move the codebook in training.
        kmeans_init, kmeans_iters: Start from k-means on the first batch.
        sync_kmeans: Take the vectors of all processes for that, if the codebook is synchronised.
        use_cosine_sim: Compare vectors and codes of length one.
        layernorm_after_project_in: Normalise after the projection, if there is one.
        threshold_ema_dead_code: Codes with a smaller average count become vectors of the batch.
        channel_last: The input is `[B, N, dim]`; otherwise `[B, dim, N]`.
        accept_image_fmap, accept_3d_fmap: The input is `[B, dim, H, W]`; `[B, dim, depth, H, W]`.
        commitment_weight: Factor of the loss, the mean squared distance to the code.
        rotation_trick: Gradient of https://arxiv.org/abs/2410.06424 instead of straight through;
            by default if dim > 1.
        sync_codebook: Sum the statistics of all processes; by default if there are several.
        ema_update: Whether codes follow their averages.
        return_zeros_for_masked_padding: Masked positions return zeros; otherwise the input.
        route_gradients_to_input: Whether `quantized` has a gradient to x.
        others: Further arguments of the package, with values that have no effect.

    Raises:
        NotImplementedError: A further argument of the package has a value that would have an
            effect.
        TypeError: The package has no such argument.
    """

    zero: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        *,
        rotation_trick: bool | None = None,
        sync_codebook: bool | None = None,
        ema_update: bool | None = None,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
        **others: Any,
    ) -> None:
        super().__init__()
        refuse_others("VectorQuantize", others, OTHER_ARGUMENTS)
        self.dim = dim
        self.codebook_size = codebook_size
        self.heads = heads
        self.eps = eps
        self.separate_codebook_per_head = separate_codebook_per_head
        self.freeze_codebook = freeze_codebook
        self.use_cosine_sim = use_cosine_sim
        self.channel_last = channel_last
        self.accept_image_fmap = accept_image_fmap
        self.accept_3d_fmap = accept_3d_fmap
        self.commitment_weight = commitment_weight
        self.rotation_trick = dim > 1 if rotation_trick is None else rotation_trick
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.route_gradients_to_input = route_gradients_to_input

        codebook_dim = dim if codebook_dim is None else codebook_dim
        inner = codebook_dim * heads
        self.has_projections = inner != dim
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(dim, inner)
            if layernorm_after_project_in:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(inner))
            self.project_out = nn.Linear(inner, dim)
        if sync_codebook is None:
            sync_codebook = dist.is_initialized() and dist.get_world_size() > 1
        self._codebook = Codebook(
            codebook_dim,
            codebook_size,
            heads if separate_codebook_per_head else 1,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            decay=decay,
            eps=eps,
            threshold_ema_dead_code=threshold_ema_dead_code,
            use_cosine_sim=use_cosine_sim,
            use_ddp=sync_codebook,
            sync_kmeans=sync_kmeans,
            ema_update=True if ema_update is None else ema_update,
        )
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self._latest_indices: Tensor | None = None

    @property
    def ema_update(self) -> bool:
        """Whether codes follow their averages."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """`[K, D]`, or `[h, K, D]` with one codebook per head; can be assigned."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        self._codebook.embed.copy_(codes if self.separate_codebook_per_head else codes[None])

    @property
    def perplexity(self) -> Tensor:
        """exp(entropy) of the codes of the latest forward, 0-d: K if all are used alike, else less.

        Before the first forward it is 1, and `usage` is 0.
        """
        indices = self._latest_indices
        return torch.ones(()) if indices is None else self._codebook.perplexity(indices)

    @property
    def usage(self) -> Tensor:
        """Share of the codes that the latest forward used, 0-d."""
        indices = self._latest_indices
        if indices is None:
            return torch.zeros(())
        return (self._codebook.counts(indices) > 0).float().mean()

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Any = None,
        ema_update_weight: Any = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Any, ...]:
        """Quantise; in training move the codebook.

        Args:
            x: `[B, N, dim]`, `[B, dim]`, or as the constructor's layout flags say.
            mask: bool `[B, N]`, True where a position counts; or `lens` int64 `[B]`.
            freeze_codebook, ema_update: As in the constructor, for this call.

        Returns:
            quantized: x's shape and dtype.
            indices: int64, x's shape without dim (and a last size h with heads); -1 where masked.
            loss: 0-d; 0 in evaluation.
            breakdown: With `return_loss_breakdown`, a `LossBreakdown`.

        Raises:
            ValueError: Shapes that do not fit the layout, or mask and lens together.
            NotImplementedError: Another argument of the package is given.
        """
        given = {
            "indices": indices,
            "topk": topk,
            "codebook_transform_fn": codebook_transform_fn,
            "ema_update_weight": ema_update_weight,
            "accum_ema_update": accum_ema_update or None,
        }
        refuse_others("VectorQuantize.forward", given, dict.fromkeys(given, (None,)))
        sequence = self._to_sequence(x)
        mask = _as_mask(x, sequence, mask, lens, self)
        projected = self.project_in(sequence)
        rows, row_mask = self._to_rows(projected, mask)
        book = self._codebook
        with without_autocast(x.device):
            frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
            learning = self.training and not frozen
            quantized, row_indices = book.quantize(
                rows.detach().float(), row_mask, learning, ema_update
            )  # [c, M, D], [c, M]
            quantized = quantized.to(x.dtype)

        commitment = self.zero
        # A compiled graph cannot make a leaf that requires a gradient; there the loss requires one
        # if its inputs do.
        is_leaf = self.training and not torch.compiler.is_compiling()
        loss = torch.zeros_like(self.zero, requires_grad=is_leaf)
        if self.training and self.commitment_weight > 0 and x.shape[0] > 0:
            # The package compares masked vectors with its original input, which is not normalised.
            as_it_came = mask is not None and self.heads == 1 and not self.has_projections
            target = sequence.reshape(rows.shape) if as_it_came else rows
            if row_mask is None:
                commitment = F.mse_loss(quantized, target)
            else:
                error = F.mse_loss(quantized, target, reduction="none").mean(-1)  # [c, M]
                commitment = error.where(row_mask, 0.0).sum() / row_mask.sum()
            loss = loss + self.commitment_weight * commitment
        if self.training and x.requires_grad and self.route_gradients_to_input:
            if self.rotation_trick:
                quantized = rotate_gradient(rows, quantized)
            else:
                quantized = quantized + (rows - rows.detach())  # adds zero

        quantized = self.project_out(self._from_rows(quantized, sequence))
        codes = self._indices_from_rows(row_indices, sequence)
        if mask is not None and row_mask is not None:
            padding = torch.zeros_like(sequence)
            padding = padding if self.return_zeros_for_masked_padding else sequence
            quantized = torch.where(mask[..., None], quantized, padding)
            codes = codes.masked_fill(~mask.view(*mask.shape, *[1] * (codes.dim() - 2)), -1)
            row_indices = row_indices.masked_fill(~row_mask, -1)
        self._latest_indices = row_indices
        result = (self._from_sequence(quantized, x), self._codes_like(codes, x), loss)
        if not return_loss_breakdown:
            return result
        return (*result, LossBreakdown(commitment, self.zero, self.zero, self.zero))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Codebook rows of indices as `forward` returns them, before `project_out`.

        With heads that share a codebook the rows stay apart, `[..., h, D]`, as in the package.
        """
        if self.separate_codebook_per_head:
            per_head = zip(self.codebook, indices.unbind(-1), strict=True)
            codes = torch.cat([codebook[index] for codebook, index in per_head], dim=-1)
        else:
            codes = self.codebook[indices]
        return codes if self._is_channel_last() else codes.movedim(-1, 1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What evaluation would return for these indices.

        As in the package, the projection acts on the last dimension, so channels must come last.
        """
        codes = self.get_codes_from_indices(indices)
        if self.has_projections and self.heads > 1 and not self.separate_codebook_per_head:
            codes = codes.flatten(-2)  # [..., h, D] -> [..., h·D]
        return self.project_out(codes)

    def expire_codes_(self, x: Tensor) -> None:
        """Replace dead codes by vectors of x, `[B, N, h·D]` as `project_in` returns it.

        The package looks at the first sequence of the batch only, this module at all of them.
        """
        self._codebook.expire_codes_(self._to_rows(x, None)[0].detach())

    @torch.no_grad()
    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Move the codebook by given vectors and indices, as `forward` takes and returns them."""
        sequence = self._to_sequence(x)
        mask = _as_mask(x, sequence, mask, None, self)
        rows, row_mask = self._to_rows(self.project_in(sequence), mask)
        per_head = indices.reshape(*sequence.shape[:2], self.heads)  # [B, N, h]
        order = (2, 0, 1) if self.separate_codebook_per_head else (0, 2, 1)
        row_indices = per_head.permute(order).reshape(rows.shape[:2]).clamp(min=0)  # [c, M]
        self._codebook.update(rows.float(), row_indices, row_mask)

    update_ema_indices = update_indices

    def update_in_place_optimizer(self) -> None:
        """Does nothing, as in the package without an in-place optimiser."""

    def _is_channel_last(self) -> bool:
        return self.channel_last and not self.accept_image_fmap and not self.accept_3d_fmap

    def _to_sequence(self, x: Tensor) -> Tensor:
        """x in its layout as `[B, N, dim]`."""
        spatial = 3 if self.accept_3d_fmap else 2 if self.accept_image_fmap else 1
        single = x.dim() == 2 and spatial == 1
        channels = x.dim() - 1 if single or self._is_channel_last() else 1
        if (not single and x.dim() != spatial + 2) or x.shape[channels] != self.dim:
            sizes = ("N", "H, W", "depth, H, W")[spatial - 1]
            layout = f"B, {sizes}, dim" if self._is_channel_last() else f"B, dim, {sizes}"
            raise ValueError(
                f"VectorQuantize: expected x [{layout}] with dim={self.dim}, got {list(x.shape)}. "
                "channel_last, accept_image_fmap and accept_3d_fmap choose the layout."
            )
        if single:
            return x[:, None]  # [B, 1, dim]
        return x if self._is_channel_last() else x.flatten(2).transpose(1, 2)

    def _from_sequence(self, sequence: Tensor, like: Tensor) -> Tensor:
        """`[B, N, dim]` in the layout of `like`."""
        if like.dim() == 2:
            return sequence[:, 0]
        return sequence if self._is_channel_last() else sequence.transpose(1, 2).reshape(like.shape)

    def _codes_like(self, codes: Tensor, like: Tensor) -> Tensor:
        """Indices `[B, N(, h)]` with the positions of `like`."""
        if like.dim() == 2:
            return codes[:, 0]
        positions = like.shape[1:-1] if self._is_channel_last() else like.shape[2:]
        return codes.reshape(len(codes), *positions, *codes.shape[2:])

    def _to_rows(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`[B, N, h·D]` as `[c, M, D]` of c codebooks, normalised for cosine; mask as `[c, M]`."""
        batch, length, inner = x.shape
        dim = inner // self.heads
        rows = x.reshape(batch, length, self.heads, dim)  # [B, N, h, D]
        if self.separate_codebook_per_head:
            rows = rows.permute(2, 0, 1, 3).reshape(self.heads, batch * length, dim)
            mask = None if mask is None else mask.reshape(1, -1).expand(self.heads, -1)
        else:
            rows = rows.transpose(1, 2).reshape(1, batch * self.heads * length, dim)
            if mask is not None:
                mask = mask[:, None].expand(-1, self.heads, -1).reshape(1, -1)
        return self._codebook.transform_input(rows), mask

    def _from_rows(self, rows: Tensor, sequence: Tensor) -> Tensor:
        """`[c, M, D]` -> `[B, N, h·D]`."""
        batch, length, _ = sequence.shape
        dim = rows.shape[-1]
        if self.separate_codebook_per_head:
            rows = rows.view(self.heads, batch, length, dim).permute(1, 2, 0, 3)
        else:
            rows = rows.view(batch, self.heads, length, dim).transpose(1, 2)
        return rows.reshape(batch, length, self.heads * dim)

    def _indices_from_rows(self, indices: Tensor, sequence: Tensor) -> Tensor:
        """`[c, M]` -> `[B, N]`, or `[B, N, h]` with several heads."""
        batch, length, _ = sequence.shape
        if self.separate_codebook_per_head:
            indices = indices.view(self.heads, batch, length).permute(1, 2, 0)
        else:
            indices = indices.view(batch, self.heads, length).transpose(1, 2)
        return indices if self.heads > 1 else indices[..., 0]


def _as_mask(
    x: Tensor, sequence: Tensor, mask: Tensor | None, lens: Tensor | None, module: VectorQuantize
) -> Tensor | None:
    """The mask `[B, N]` that mask or lens give, checked."""
    if mask is not None and lens is not None:
        raise ValueError("VectorQuantize: expected mask or lens, got both.")
    if lens is not None:
        mask = torch.arange(sequence.shape[1], device=x.device) < lens[:, None]
    if mask is None:
        return None
    if x.dim() != 3 or module.accept_image_fmap or module.accept_3d_fmap:
        raise ValueError(f"VectorQuantize: a mask goes with sequences only, got x {list(x.shape)}.")
    if mask.shape != sequence.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"VectorQuantize: expected mask bool {list(sequence.shape[:2])}, got "
            f"{list(mask.shape)} {dtype_name(mask.dtype)}."
        )
    return mask
