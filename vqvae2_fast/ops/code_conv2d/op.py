"""`code_conv2d`: a convolution of a map of codes, as sums of gathered weight columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    assert_inside,
    beyond_int32,
    check_floating,
    check_int64,
    check_same_device,
    checked_integers,
    described,
    other_dtype,
)
from vqvae2_fast.ops._registry import register, transforms_are_active

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CODE_CONV2D",
    "CODE_CONV2D_FUSED",
    "code_conv2d",
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


def _why_not(codes: Tensor, table: Tensor, *_: Any) -> str | None:
    return beyond_int32(codes.numel(), "positions") or other_dtype(KERNEL_DTYPES, table=table)


CODE_CONV2D_BACKWARD = register(
    "code_conv2d_backward",
    "(Tensor dout, Tensor codes, int num_embeddings, int[] offsets) -> Tensor",
    reference=code_conv2d_backward_reference,
    fake=lambda dout, codes, num_embeddings, offsets: dout.new_empty(
        (len(offsets) // 2, num_embeddings, dout.shape[1])
    ),
    owners={"cuda": "triton"},
    why_not=lambda dout, codes, *_: _why_not(codes, dout),
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, table, ctx.offsets = inputs
    ctx.num_embeddings = table.shape[1]
    ctx.save_for_backward(codes)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    (codes,) = ctx.saved_tensors
    return None, CODE_CONV2D_BACKWARD(dout, codes, ctx.num_embeddings, ctx.offsets), None


CODE_CONV2D_FUSED = register(
    "code_conv2d_fused",
    "(Tensor codes, Tensor table, int[] offsets) -> Tensor",
    reference=code_conv2d_reference,
    fake=lambda codes, table, offsets: table.new_empty((*codes.shape, table.shape[2])).permute(
        0, 3, 1, 2
    ),
    owners={"cuda": "triton"},
    why_not=_why_not,
    gradient=(_setup_context, _backward),
    private=True,
)


CODE_CONV2D = register(
    "code_conv2d",
    "(Tensor codes, Tensor table, int[] offsets) -> Tensor",
    reference=code_conv2d_reference,
    owners={"cuda": "triton"},
    why_not=_why_not,
    kernel=CODE_CONV2D_FUSED.kernel,
)


def code_conv2d(codes: Tensor, table: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """`out[b, :, i, j] = Σ_t table[t, codes[b, i + row_t, j + column_t]]`, zero off the map.

    This is the convolution of a one-hot map with a weight that has a column for each tap and code.

    Args:
        codes: int64 `[B, H, W]`, each in 0..K−1.
        table: `[T, K, C]`, floating.
        offsets: (row, column) of each tap from the position, T of them.

    Returns:
        `[B, C, H, W]`, channels last in memory, differentiable in table.

    Raises:
        ValueError: Shapes that do not fit, no taps, or offsets that are not pairs of integers.
        TypeError: Not a tensor, codes not int64, or a table that is not floating.
        RuntimeError: Tensors on different devices, or a code out of range where the reference runs.

    Note:
        The Triton kernels add nothing for codes out of range and do not read out of bounds. The
        models check the codes that they are given.
    """
    check_floating(table=table)
    check_int64("codes", codes)
    check_same_device(codes=codes, table=table)
    if codes.dim() != 3:
        raise ValueError(f"expected codes [B, H, W], got {described(codes)}.")
    distances = _flat(offsets)
    if not offsets or table.dim() != 3 or table.shape[0] != len(offsets):
        raise ValueError(
            f"expected table [T, K, C] with T={len(offsets)} as offsets, at least 1, "
            f"got {described(table)}."
        )
    return CODE_CONV2D(codes, table, distances)


def _flat(offsets: Sequence[tuple[int, int]]) -> list[int]:
    are_pairs = isinstance(offsets, (list, tuple)) and all(
        isinstance(offset, (list, tuple)) and len(offset) == 2 for offset in offsets
    )
    if not are_pairs:
        raise ValueError(f"expected offsets as (row, column) of each tap, got {offsets!r}.")
    distances = [distance for offset in offsets for distance in offset]
    return checked_integers("offsets", distances)
