"""References of `code_conv2d`, which gathers columns without a one-hot map, and of its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops._checks import assert_inside
from vqvae2_fast.ops._registry import transforms_are_active

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "code_conv2d_backward_reference",
    "code_conv2d_reference",
    "gather_columns",
    "with_outside",
]


def with_outside(tables: Tensor) -> Tensor:
    """`[T, K, C]` -> `[T, K + 1, C]`: code K, outside the map, has a column of zeros."""
    return F.pad(tables, (0, 0, 0, 1))


def gather_columns(taps: Tensor, tables: Tensor) -> Tensor:
    """Σ_t tables[t, taps[:, t]].

    Args:
        taps: int64 `[N, T]`, each in 0..K.
        tables: `[T, K + 1, C]`, see `with_outside`.

    Returns:
        `[N, C]`.
    """
    num_taps, num_codes, _ = tables.shape
    first_row = torch.arange(num_taps, device=taps.device) * num_codes
    rows, columns = taps + first_row, tables.flatten(0, 1)  # [N, T], [T·(K + 1), C]
    if transforms_are_active():
        # `embedding_bag` has no forward-mode and no second derivative.
        return F.embedding(rows, columns).sum(dim=1)
    if columns.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        gathered: Tensor = _SumOfRows.apply(rows, columns)  # type: ignore[no-untyped-call]
        return gathered
    return F.embedding_bag(rows, columns, mode="sum")


class _SumOfRows(torch.autograd.Function):
    """`embedding_bag` with a gradient that is faster than PyTorch's on a CPU, and that can be
    differentiated."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_columns = len(columns)
        return F.embedding_bag(rows, columns, mode="sum")

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[None, Tensor]:
        (rows,) = ctx.saved_tensors
        is_half = dout.dtype not in (torch.float32, torch.float64)
        if torch.is_grad_enabled() or (dout.is_cpu and not is_half):
            # On a CPU PyTorch's gradient sorts the rows, which takes up to three times as long.
            # Compiled calls have it, and in half precision the two round differently. On a GPU it
            # adds in the same order each time.
            sums = dout.new_zeros(ctx.num_columns, dout.shape[1])
            for tap in rows.unbind(dim=1):
                sums.index_add_(0, tap, dout)
            return None, sums
        positions, num_taps = rows.shape
        bags = torch.arange(positions, device=rows.device).repeat_interleave(num_taps)
        sizes, unused = rows.new_full((positions,), num_taps), rows.new_empty(0)
        dcolumns: Tensor = torch.ops.aten._embedding_bag_dense_backward(
            dout, rows.flatten(), bags, sizes, unused, ctx.num_columns, False, 0, None
        )
        return None, dcolumns


def _codes_under_taps(codes: Tensor, offsets: Sequence[int], outside: int) -> Tensor:
    """int64 `[B·H·W, T]`: the code that each tap sees from each position; `outside` where a tap
    leaves the map.

    Raises:
        RuntimeError: A code that is not in 0..outside−1, which would take a row of another tap; not
            under vmap, which has no rule for assertions.
    """
    if not transforms_are_active():
        assert_inside(codes, 0, outside, name="codes")
    _, height, width = codes.shape
    rows, columns = offsets[::2], offsets[1::2]
    top, left = max(0, -min(rows)), max(0, -min(columns))
    bottom, right = max(0, *rows), max(0, *columns)
    padded = F.pad(codes, (left, right, top, bottom), value=outside)
    taps = [
        padded[:, top + row :, left + column :][:, :height, :width]
        for row, column in zip(rows, columns, strict=True)
    ]
    return torch.stack(taps, dim=3).flatten(0, 2)  # [B, H, W, T] -> [B·H·W, T]


def code_conv2d_reference(codes: Tensor, table: Tensor, offsets: Sequence[int]) -> Tensor:
    taps = _codes_under_taps(codes, offsets, table.shape[1])
    out = gather_columns(taps, with_outside(table))  # [B·H·W, C]
    return out.view(*codes.shape, table.shape[2]).permute(0, 3, 1, 2)


def code_conv2d_backward_reference(
    dout: Tensor, codes: Tensor, num_embeddings: int, offsets: Sequence[int]
) -> Tensor:
    taps = _codes_under_taps(codes, offsets, num_embeddings)
    rows = dout.permute(0, 2, 3, 1).flatten(0, 2)  # [B·H·W, C]
    zeros = dout.new_zeros(num_embeddings + 1, dout.shape[1])
    sums = [zeros.index_add(0, tap, rows) for tap in taps.unbind(dim=1)]
    return torch.stack(sums)[:, :num_embeddings]  # [T, K, C]
