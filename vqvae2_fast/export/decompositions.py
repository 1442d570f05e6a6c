"""This package's operators in terms of PyTorch's, for runtimes that do not have ours.

The references define an operator to the bit and in bounded memory, with loops and writes in place
that an exported program cannot hold. Where they do, a shorter form stands here. Its sums are
rounded in another order, so a code may differ where two distances agree up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.ops._registry import OPERATORS
from vqvae2_fast.ops.scalar_quantize.op import column_of, places_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["decompositions"]


def _nearest_code(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    # Half precision would round away the difference between most codes; the vectors and the codes
    # of a residual quantiser can have different dtypes.
    dtype = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    z, codebook = z.to(dtype), codebook.to(dtype)
    # ‖z − e‖² less ‖z‖², which is the same for all codes.
    distances = codebook.square().sum(1) - 2 * (z @ codebook.T)  # [N, K]
    # A code that is NaN fills up a smaller codebook; argmin would take it.
    indices = distances.where(~distances.isnan(), torch.inf).argmin(dim=1)
    return indices, (z - codebook[indices]).square().sum(1).float()


def _scalar_quantize(
    z: Tensor,
    levels: Sequence[int],
    symmetric: bool = False,
    hard: bool = False,
    int32: bool = False,
) -> tuple[Tensor, Tensor]:
    # bfloat16 has not even the whole numbers of a large grid.
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    # Number by number, so that constants are numbers: a program cannot make tensors of them.
    values, indices = [], torch.zeros_like(z[:, 0], dtype=torch.int64)
    for number, size, place in zip(wide.unbind(1), levels, places_of(levels), strict=True):
        grid = column_of(size, symmetric, hard)
        shifted = number + grid.shift
        exact = (shifted.clamp(-1, 1) if hard else shifted.tanh()) * grid.half + grid.offset
        rounded = (exact.floor() if symmetric else exact.round()).clamp(grid.least, grid.most)
        values.append(rounded / grid.width - 1 if symmetric else rounded / grid.width)
        indices = indices + (rounded - grid.least).to(torch.int64) * place
    return torch.stack(values, 1).to(z.dtype), indices.to(torch.int32) if int32 else indices


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for `ExportedProgram.run_decompositions`."""
    forms: dict[Any, Callable[..., Any]] = {
        operator.overload: operator.reference for operator in OPERATORS.values()
    }
    forms[OPERATORS["nearest_code"].overload] = _nearest_code
    forms[OPERATORS["scalar_quantize"].overload] = _scalar_quantize
    return forms
