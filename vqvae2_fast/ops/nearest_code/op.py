"""`nearest_code`: index and squared distance of the nearest codebook row, exact."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    check_codebook,
    check_finite,
    check_floating,
    described,
    fits_codebook,
    other_dtype,
)
from vqvae2_fast.ops._registry import register

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "NEAREST_CODE",
    "for_each_head",
    "nearest_code",
    "nearest_code_exported",
    "nearest_code_reference",
    "squared_distances",
    "why_not",
]

# Float64 distances that are held at once: 2^22 entries are 32 MiB.
_MAX_DISTANCES = 1 << 22


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Σ_d (z_d − e_d)² in float64, each sum in the order of d, never contracted to an FMA.

    z `[N, D]`, codebook `[K, D]` -> `[N, K]`.
    """
    # Each dimension of the codes lies in one piece, which is read two to three times as fast.
    z, columns = z.double(), codebook.double().t().contiguous()  # [N, D], [D, K]
    # `len` would fix N in a program for any number of vectors.
    total = z.new_zeros(z.shape[0], len(codebook))  # [N, K]
    for d in range(z.shape[1]):
        total += (z[:, d, None] - columns[d]).square_()
    return total


def _nearest(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    distances = squared_distances(z, codebook)  # [N, K]
    # NaN never wins and ties take the lowest index; a row that is all NaN gives 0.
    indices = distances.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(dim=1)
    return indices, distances.gather(1, indices[:, None]).squeeze(1).float()


def nearest_code_reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    z, codebook = z.detach(), codebook.detach()
    if is_exporting():
        # A program for any number of vectors cannot loop over pieces of them.
        return _nearest(z, codebook)
    indices = z.new_empty(len(z), dtype=torch.int64)
    sqdist = z.new_empty(len(z), dtype=torch.float32)
    rows = max(1, _MAX_DISTANCES // len(codebook))
    for start in range(0, len(z), rows):
        piece = slice(start, start + rows)
        indices[piece], sqdist[piece] = _nearest(z[piece], codebook)
    return indices, sqdist


def nearest_code_exported(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The reference for runtimes without loops over pieces. Its sums are rounded in another order,
    so a code may differ where two distances agree up to rounding."""
    # Half precision would round away the difference between most codes; the vectors and the codes
    # of a residual quantiser can have different dtypes.
    dtype = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    z, codebook = z.to(dtype), codebook.to(dtype)
    # ‖z − e‖² less ‖z‖², which is the same for all codes.
    distances = codebook.square().sum(1) - 2 * (z @ codebook.T)  # [N, K]
    # A code that is NaN fills up a smaller codebook; argmin would take it.
    indices = distances.where(~distances.isnan(), torch.inf).argmin(dim=1)
    return indices, (z - codebook[indices]).square().sum(1).float()


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
    exported=nearest_code_exported,
)
# The overload without its Python method, which takes a twelfth of a small call. Tracers need the
# method.
_search = NEAREST_CODE.overload._op


def for_each_head(
    call: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    z: Tensor,
    other: Tensor,
    name: str = "codebook",
) -> tuple[Tensor, ...]:
    """`call(z[h], other[h])` of each head h, stacked: z `[H, ..., D]`, other `[H, ...]`."""
    heads = len(other)
    if heads == 0 or z.dim() < 2 or len(z) != heads:
        raise ValueError(
            f"expected z [H, ..., D] for {name} [H, ...] with H >= 1, got z {described(z)} "
            f"for {name} {described(other)}."
        )
    results = [call(*each) for each in zip(z.unbind(), other.unbind(), strict=True)]
    return tuple(torch.stack(each) for each in zip(*results, strict=True))


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
        check_floating(z=z, codebook=codebook)
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
