"""`code_conv2d`: a convolution of a map of codes, as sums of gathered weight columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops._checks import (
    check_floating,
    check_int64,
    check_same_device,
    checked_integers,
    described,
)
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.code_conv2d.gradient import CODE_CONV2D_FUSED, why_not
from vqvae2_fast.ops.code_conv2d.reference import code_conv2d_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CODE_CONV2D", "code_conv2d"]

CODE_CONV2D = register(
    "code_conv2d",
    "(Tensor codes, Tensor table, int[] offsets) -> Tensor",
    reference=code_conv2d_reference,
    owners={"cuda": "triton"},
    why_not=why_not,
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
    check_int64(codes=codes)
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
