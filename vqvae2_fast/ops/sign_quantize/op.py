"""`sign_quantize`: each number of a vector replaced by its sign."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import check_floating, check_number, dtype_name, misfit, other_dtype
from vqvae2_fast.ops._registry import register

__all__ = ["SIGN_QUANTIZE", "sign_quantize", "sign_quantize_reference"]


def sign_quantize_reference(z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    positive = z > 0
    places = 2 ** torch.arange(z.shape[1] - 1, -1, -1, device=z.device)
    values = torch.full_like(z, scale)  # not numbers in `where`, which would be float32
    return torch.where(positive, values, -values), (positive * places).sum(1)


# Bits of an int64 index.
_MOST_BITS = 63


def _why_not(z: Tensor, *_: Any) -> str | None:
    return other_dtype((torch.float32,), input=z)


SIGN_QUANTIZE = register(
    "sign_quantize",
    "(Tensor z, float scale) -> (Tensor values, Tensor indices)",
    reference=sign_quantize_reference,
    fake=lambda z, scale: (z.new_empty(z.shape), z.new_empty(z.shape[:1], dtype=torch.int64)),
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
)


def sign_quantize(z: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """±scale by the signs of numbers, and their bits as one index: eqs. 3 and 4 of
    https://arxiv.org/abs/2310.05737.

    Args:
        z: `[..., d]`, floating, d from 1 to 63. Only float32 has kernels.
        scale: Absolute value of a number of a code, above 0.

    Returns:
        values: `[..., d]`; 0 and NaN count as negative.
        indices: int64 `[...]`, Σ_i [z_i > 0] · 2^(d−1−i): the first number is the highest bit.

    Raises:
        ValueError: d is not in 1 to 63, or scale is no positive normal number of z's dtype.
        TypeError: z is not a floating tensor.

    Note:
        No gradient flows to z.
    """
    check_floating(z=z)
    if z.dim() == 0 or not 1 <= z.shape[-1] <= _MOST_BITS:
        raise misfit(f"z [..., d] with d from 1 to {_MOST_BITS}", z=z)
    check_number("scale", scale)
    limits = torch.finfo(z.dtype)
    if not limits.tiny <= scale <= limits.max:
        raise ValueError(
            f"expected scale from {limits.tiny:.3g} to {limits.max:.3g}, the range "
            f"of {dtype_name(z.dtype)}, got {scale}."
        )
    z = z.detach()
    values, indices = SIGN_QUANTIZE(z.reshape(-1, z.shape[-1]), scale)
    return values.view(z.shape), indices.view(z.shape[:-1])
