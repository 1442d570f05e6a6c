"""The layouts of `VectorQuantize`: images, sequences and heads as rows of vectors, and back.

Letters: B batch, N positions, h heads, c codebooks (1 or h), M rows of a codebook, D codebook_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae2_fast.ops._checks import dtype_name

__all__ = ["Layouts"]


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
