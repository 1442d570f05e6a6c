"""The gradient of `scalar_quantize`: that of the bound, computed again from z in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops._triton import runs_triton
from vqvae2_fast.ops.scalar_quantize.reference import scalar_quantize_backward_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["backward", "setup_context", "why_not"]

# A Triton program holds whole vectors.
_MOST_NUMBERS_ON_GPU = 1024
# Adding 1.5 · 2²³ rounds numbers up to this to integers.
_LARGEST_LEVEL = 2**22


def why_not(z: Tensor, levels: Sequence[int], *_: Any) -> str | None:
    if other := other_dtype((torch.float32,), input=z):
        return other
    if max(levels) > _LARGEST_LEVEL:
        return f"a level of more than {_LARGEST_LEVEL} values"
    if len(levels) > _MOST_NUMBERS_ON_GPU and runs_triton(z):
        return f"more than {_MOST_NUMBERS_ON_GPU} numbers"
    return None


def _why_not(dvalues: Tensor, z: Tensor, levels: Sequence[int], *_: Any) -> str | None:
    return other_dtype((torch.float32,), gradient=dvalues) or why_not(z, levels)


SCALAR_QUANTIZE_BACKWARD = register(
    "scalar_quantize_backward",
    "(Tensor dvalues, Tensor z, int[] levels, bool symmetric=False, bool hard=False) -> Tensor",
    reference=scalar_quantize_backward_reference,
    fake=lambda dvalues, z, *_: z.new_empty(z.shape),
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    is_gradient=True,
)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    # Indices have no gradient.
    ctx.set_materialize_grads(False)
    z, *ctx.grid, _ = inputs
    ctx.save_for_backward(z)


def backward(
    ctx: Any, dvalues: Tensor | None, _dindices: None
) -> tuple[Tensor | None, None, None, None, None]:
    (z,) = ctx.saved_tensors
    dz = None if dvalues is None else SCALAR_QUANTIZE_BACKWARD(dvalues, z, *ctx.grid)
    return dz, None, None, None, None
