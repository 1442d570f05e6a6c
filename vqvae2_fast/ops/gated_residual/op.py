"""`gated_residual`: the end of a gated residual layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops._checks import check_floating, check_same_device, described, misfit
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.gated_residual.gradient import GATED_RESIDUAL_FUSED, why_not
from vqvae2_fast.ops.gated_residual.reference import gated_residual_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GATED_RESIDUAL", "gated_residual"]

GATED_RESIDUAL = register(
    "gated_residual",
    "(Tensor h, Tensor x, Tensor? condition) -> Tensor",
    reference=gated_residual_reference,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=why_not,
    kernel=GATED_RESIDUAL_FUSED.kernel,
)


def gated_residual(h: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """`a · sigmoid(b) + x`, where a and b are the halves of `h + condition` along the channels.

    The gated linear unit of PixelSNAIL's residual block, section 2 of
    https://arxiv.org/abs/1712.09763, with the condition added before the gate.

    Args:
        h: `[B, 2C, H, W]`, floating.
        x: The residual input, `[B, C, H, W]`.
        condition: `[B, 2C, H, W]`, or `[B, 2C, 1, 1]` for one vector per image.

    Returns:
        `[B, C, H, W]`, differentiable in all three.

    Raises:
        ValueError: Shapes that do not fit.
        TypeError: Not a tensor, or a dtype that is not floating.
        RuntimeError: Tensors on different devices.
    """
    check_floating(h=h, x=x)
    if condition is not None:
        check_floating(condition=condition)
    check_same_device(h=h, x=x, condition=condition)
    if x.dim() != 4 or h.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        raise misfit("h [B, 2C, H, W] for x [B, C, H, W]", h=h, x=x)
    if condition is not None and condition.shape not in (h.shape, (*h.shape[:2], 1, 1)):
        raise ValueError(
            f"expected condition {list(h.shape)} or {[*h.shape[:2], 1, 1]}, got "
            f"{described(condition)}."
        )
    return GATED_RESIDUAL(h, x, condition)
