"""The rotation trick: gradients of a quantised vector as if it were rotated from its input.

Section 4.2 of https://arxiv.org/abs/2410.06424. With u = z/‖z‖, q = e/‖e‖, w = (u + q)/‖u + q‖ and
λ = ‖e‖/‖z‖, all held constant, λRz = λ(z − 2(z·w)w + 2(z·u)q) is the code e up to rounding. z and
e are `[..., D]`; results are float64 if z is, else float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rotate_gradient", "rotated", "rotated_back"]


def _wide(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _frame(z: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, q, w and λ."""
    wide = _wide(z.detach())
    e = code.detach().to(wide.dtype)
    u, q = F.normalize(wide, dim=-1), F.normalize(e, dim=-1)
    scale = e.norm(dim=-1, keepdim=True) / wide.norm(dim=-1, keepdim=True).clamp(1e-6)
    return u, q, F.normalize(u + q, dim=-1), scale


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def rotated(z: Tensor, code: Tensor) -> Tensor:
    """λRz, differentiable in z; no gradient flows to the code."""
    wide = _wide(z)
    u, q, w, scale = _frame(z, code)
    return (wide - 2 * _dot(wide, w) * w + 2 * _dot(wide, u) * q) * scale


def rotated_back(gradient: Tensor, z: Tensor, code: Tensor) -> Tensor:
    """λRᵀg, the gradient of `rotated` in z for the gradient g of its result."""
    u, q, w, scale = _frame(z, code)
    g = _wide(gradient)
    return (g - 2 * _dot(g, w) * w + 2 * _dot(g, q) * u) * scale


def rotate_gradient(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q with the gradient to z of its rotation, `rotated`. The value is z_q itself."""
    image = rotated(z, z_q)
    # The difference is zero, with the gradient of its first term.
    return z_q.detach() + (image - image.detach()).to(z.dtype)
