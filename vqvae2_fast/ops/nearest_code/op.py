"""`nearest_code`: index and squared distance of the nearest codebook row, exact."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.compiler import is_compiling

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    check_codebook,
    check_finite,
    check_floating,
    check_tensors,
    fits_codebook,
    other_dtype,
)
from vqvae2_fast.ops._heads import for_each_head
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.nearest_code.reference import nearest_code_reference

__all__ = ["NEAREST_CODE", "nearest_code", "why_not"]


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    return (
        z.new_empty(z.shape[:1], dtype=torch.int64),
        z.new_empty(z.shape[:1], dtype=torch.float32),
    )


def why_not(z: Tensor, codebook: Tensor) -> str | None:
    if z.dtype in KERNEL_DTYPES and codebook.dtype in KERNEL_DTYPES:
        return None
    return other_dtype(KERNEL_DTYPES, input=z, codebook=codebook)


NEAREST_CODE = register(
    "nearest_code",
    "(Tensor z, Tensor codebook) -> (Tensor indices, Tensor sqdist)",
    reference=nearest_code_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=why_not,
)
# The overload without its Python method, which takes a twelfth of a small call. Tracers need the
# method.
_search = NEAREST_CODE.overload._op


def nearest_code(
    z: Tensor, codebook: Tensor, *, check_values: bool = False
) -> tuple[Tensor, Tensor]:
    """Index and squared distance of the codebook row nearest to each vector.

    `indices[n] = argmin_k Σ_d (z[n, d] − codebook[k, d])²`, the sum taken in float64 in the
    order of d, of the values as given. Every backend returns exactly this.

    Args:
        z: Vectors, `[..., D]`, float32, bfloat16 or float16 (float64 runs on the reference).
        codebook: Codes, `[K, D]`; or of H heads, `[H, K, D]`, and z is `[H, ..., D]`.
        check_values: Raise on NaN or infinity in z or codebook. Synchronises a GPU.

    Returns:
        indices: int64, `[...]`.
        sqdist: float32, `[...]`, the squared distance rounded once.

    Raises:
        ValueError: Shapes that do not fit, an empty codebook, or with `check_values` NaN or
            infinity.
        TypeError: Not a tensor, or a dtype that is not floating.
        RuntimeError: Tensors on different devices.

    Note:
        Ties take the lowest index. NaN never wins; a vector without any finite distance gets
        index 0. No gradient flows to either result.
    """
    # The condition repeats the check because a Python call costs more.
    if not (isinstance(z, Tensor) and isinstance(codebook, Tensor)):
        check_tensors(z=z, codebook=codebook)
    # A detach costs half a microsecond, so it is done only where it is needed.
    if z.requires_grad or codebook.requires_grad:
        z, codebook = z.detach(), codebook.detach()
    if check_values or not fits_codebook(z, codebook):
        if codebook.dim() == 3:
            search = partial(nearest_code, check_values=check_values)
            indices, sqdist = for_each_head(search, z, codebook)
            return indices, sqdist
        check_codebook(z, codebook)
        if check_values:
            check_finite(z=z, codebook=codebook)
        if z.dim() != 2:
            leading = z.shape[:-1]
            indices, sqdist = NEAREST_CODE(z.reshape(-1, z.shape[-1]), codebook)  # [N, D]
            return indices.view(leading), sqdist.view(leading)
    # `NEAREST_CODE(z, codebook)` without a Python call.
    reason = NEAREST_CODE.choose(z, codebook)
    if reason is None:
        return (NEAREST_CODE.kernel if is_compiling() else _search)(z, codebook)
    check_floating(z=z, codebook=codebook)
    return NEAREST_CODE.fall_back(reason, z, codebook)
