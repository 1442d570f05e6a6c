"""The layouts of `VectorQuantize`, and what it offers besides its forward: codes of indices, usage,
updates by hand.

Letters: B batch, N positions, h heads, c codebooks (1 or h), M rows of a codebook, K codes,
D codebook_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqvae2_fast.modules.quantizer_interface import may_keep_tensors
from vqvae2_fast.ops._checks import dtype_name

if TYPE_CHECKING:
    from vqvae2_fast.compat.lucidrains.codebook import Codebook

__all__ = ["CodebookAccess", "Layouts"]


class Layouts(nn.Module):
    """What a module with the layout flags of `VectorQuantize` needs to see its input as rows."""

    dim: int
    heads: int
    separate_codebook_per_head: bool
    channel_last: bool
    accept_image_fmap: bool
    accept_3d_fmap: bool

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
                f"expected x [{layout}] with dim={self.dim}, got "
                f"{list(x.shape)}. channel_last, accept_image_fmap and accept_3d_fmap choose the "
                "layout."
            )
        if single:
            return x[:, None]  # [B, 1, dim]
        return x if self._is_channel_last() else x.flatten(2).transpose(1, 2)

    def _from_sequence(self, sequence: Tensor, like: Tensor) -> Tensor:
        """`[B, N, ..., dim]` in the layout of `like`, what stands between N and dim last."""
        if like.dim() == 2:
            return sequence[:, 0]
        if self._is_channel_last():
            return sequence
        return sequence.movedim(-1, 1).reshape(*like.shape, *sequence.shape[2:-1])

    def _codes_like(self, codes: Tensor, like: Tensor) -> Tensor:
        """Indices `[B, N(, h)]` with the positions of `like`."""
        if like.dim() == 2:
            return codes[:, 0]
        return codes if like.dim() == 3 else codes.unflatten(1, like.shape[2:])

    def _check_indices(self, indices: Tensor, x: Tensor) -> None:
        """Raise unless indices are int64 and as `forward` returns them for x."""
        expected = list(x.shape)
        expected.pop(-1 if self._is_channel_last() else 1)
        if self.heads > 1:
            expected.append(self.heads)
        if list(indices.shape) != expected:
            raise ValueError(
                f"expected indices {expected} for x {list(x.shape)}, got {list(indices.shape)}."
            )
        if indices.dtype != torch.int64:
            raise TypeError(
                f"expected indices int64, got {dtype_name(indices.dtype)}. Pass indices.long()."
            )

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
        return rows, mask

    def _from_rows(self, rows: Tensor, sequence: Tensor) -> Tensor:
        """`[c, M, D]` -> `[B, N, h·D]`; `[1, M, k, D]` -> `[B, N, k, D]`."""
        if rows.dim() == 4:
            return rows.view(*sequence.shape[:2], *rows.shape[2:])
        return self._per_head(rows, sequence).flatten(2)

    def _per_head(self, rows: Tensor, sequence: Tensor) -> Tensor:
        """`[c, M, ...]` -> `[B, N, h, ...]`."""
        batch, length, _ = sequence.shape
        if self.separate_codebook_per_head:
            return rows.unflatten(1, (batch, length)).permute(1, 2, 0, *range(3, rows.dim() + 1))
        return rows[0].unflatten(0, (batch, self.heads, length)).transpose(1, 2)

    def _indices_from_rows(self, indices: Tensor, sequence: Tensor) -> Tensor:
        """`[c, M]` -> `[B, N]`, or `[B, N, h]` with several heads; `[1, M, k]` -> `[B, N, k]`."""
        if indices.dim() == 3:
            return indices.view(*sequence.shape[:2], indices.shape[-1])
        each = self._per_head(indices, sequence)
        return each if self.heads > 1 else each[..., 0]

    def _as_mask(
        self, x: Tensor, sequence: Tensor, mask: Tensor | None, lens: Tensor | None
    ) -> Tensor | None:
        """The mask `[B, N]` that mask or lens give, checked."""
        if mask is not None and lens is not None:
            raise ValueError("expected mask or lens, got both.")
        if lens is not None:
            mask = torch.arange(sequence.shape[1], device=x.device) < lens[:, None]
        if mask is None:
            return None
        if x.dim() != 3 or self.accept_image_fmap or self.accept_3d_fmap:
            raise ValueError(f"a mask goes with sequences only, got x {list(x.shape)}.")
        if mask.shape != sequence.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"expected mask bool {list(sequence.shape[:2])}, got "
                f"{list(mask.shape)} {dtype_name(mask.dtype)}."
            )
        return mask


class CodebookAccess(Layouts):
    """A module with a `Codebook` between two projections."""

    freeze_codebook: bool
    has_projections: bool
    project_in: nn.Module
    project_out: nn.Module
    orthogonal_reg_weight: float
    codebook_diversity_loss_weight: float
    in_place_codebook_optimizer: torch.optim.Optimizer | None
    _codebook: Codebook
    _latest_indices: Tensor | None

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
        self._codebook.embed.data.copy_(codes if self.separate_codebook_per_head else codes[None])

    def is_frozen(self, of_call: bool | None) -> bool:
        """Whether a forward with this freeze_codebook leaves the codebook as it is."""
        return self.freeze_codebook if of_call is None else of_call

    def _remember(self, row_indices: Tensor) -> None:
        """Keep the indices of a forward for `perplexity` and `usage`: `[c, M]` of c codebooks, or
        `[c, M, k]` of the k nearest codes.
        """
        if may_keep_tensors():
            # A copy: the indices are returned too, and may be written then.
            self._latest_indices = row_indices.flatten(1).clone()

    @property
    def perplexity(self) -> Tensor:
        """exp(entropy) of the codes of the latest forward, 0-d: K if all are used alike, else less.

        Before the first forward it is 1, and `usage` is 0.
        """
        indices = self._latest_indices
        if indices is None:
            return torch.ones((), dtype=torch.float32, device="cpu")
        return self._codebook.perplexity(indices)

    @property
    def usage(self) -> Tensor:
        """Share of the codes that the latest forward used, 0-d."""
        indices = self._latest_indices
        if indices is None:
            return torch.zeros((), dtype=torch.float32, device="cpu")
        return (self._codebook.counts(indices) > 0).float().mean()

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Codebook rows of indices as `forward` returns them, before `project_out`.

        With heads that share a codebook the rows stay apart, `[..., h, D]`, as in the package.
        """
        return self._channels_as_input(self._codes_of(indices))

    def _codes_of(self, indices: Tensor) -> Tensor:
        """`get_codes_from_indices` with channels last."""
        # The indices of a single head have no dimension for it.
        if self.separate_codebook_per_head and self.heads > 1:
            per_head = zip(self.codebook, indices.unbind(-1), strict=True)
            return torch.cat([codebook[index] for codebook, index in per_head], dim=-1)
        return self._codebook.embed[0][indices]

    def _channels_as_input(self, x: Tensor) -> Tensor:
        return x if self._is_channel_last() else x.movedim(-1, 1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What evaluation would return for these indices, in the layout of the input.

        Without a projection, heads that share a codebook stay apart, as in
        `get_codes_from_indices`. With one and channels first, the package projects along the last
        dimension of a map instead.
        """
        if not self.has_projections:
            return self.get_codes_from_indices(indices)
        codes = self._codes_of(indices)
        if self.heads > 1 and not self.separate_codebook_per_head:
            codes = codes.flatten(-2)  # [..., h, D] -> [..., h·D]
        return self._channels_as_input(self.project_out(codes))

    def expire_codes_(self, x: Tensor) -> None:
        """Replace dead codes by vectors of x, `[B, N, h·D]` as `project_in` returns it.

        The package looks at the first sequence of the batch only, this module at all of them.
        """
        rows = self._to_rows(x, None)[0].detach()
        self._codebook.expire_codes_(self._codebook.transform_input(rows))

    @torch.no_grad()
    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Move the codebook by given vectors and indices, as `forward` takes and returns them.

        A vector of index −1 does not count: `forward` returns it where a vector is masked. The host
        waits for a GPU once.
        """
        sequence = self._to_sequence(x)
        self._check_indices(indices, x)
        mask = self._as_mask(x, sequence, mask, None)
        rows, row_mask = self._to_rows(self.project_in(sequence), mask)
        rows = self._codebook.transform_input(rows)
        per_head = indices.reshape(*sequence.shape[:2], self.heads)  # [B, N, h]
        order = (2, 0, 1) if self.separate_codebook_per_head else (0, 2, 1)
        row_indices = per_head.permute(order).reshape(rows.shape[:2])  # [c, M]
        counted = row_indices != -1
        counted = counted if row_mask is None else counted & row_mask
        self._codebook.update(rows.float(), row_indices, counted)

    update_ema_indices = update_indices

    def update_in_place_optimizer(self) -> None:
        """A step of the in-place optimiser, if there is one, by the gradients of all processes."""
        if self.in_place_codebook_optimizer is None:
            return
        for weight in self._codebook.parameters():
            if weight.grad is not None and self._codebook.use_ddp:
                dist.all_reduce(weight.grad)
                weight.grad /= dist.get_world_size()
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    @property
    def has_codebook_orthogonal_loss(self) -> bool:
        """Whether a loss makes the codes orthogonal."""
        return self.orthogonal_reg_weight > 0

    @property
    def has_codebook_diversity_loss(self) -> bool:
        """Whether a loss makes the use of the codes even."""
        return self.codebook_diversity_loss_weight > 0
