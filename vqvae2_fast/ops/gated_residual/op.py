"""`gated_residual`: the end of a gated residual layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    beyond_int32,
    check_floating,
    check_same_device,
    described,
    misfit,
    other_dtype,
)
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops._training import new_channels_last
from vqvae2_fast.ops._triton import runs_triton

__all__ = [
    "GATED_RESIDUAL",
    "GATED_RESIDUAL_FUSED",
    "gated_residual",
    "gated_residual_backward_reference",
    "gated_residual_reference",
]


def gated_residual_reference(h: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    if condition is not None:
        h = h + condition
    return F.glu(h, dim=1) + x


def gated_residual_backward_reference(dout: Tensor, h: Tensor, condition: Tensor | None) -> Tensor:
    if condition is not None:
        h = h + condition
    a, b = h.chunk(2, dim=1)
    gate = b.sigmoid()
    return torch.cat([dout * gate, dout * a * gate * (1 - gate)], dim=1)


def _why_not(h: Tensor, x: Tensor, condition: Tensor | None = None) -> str | None:
    if not runs_triton(h):
        # The CPU kernel is for training in float32.
        other = other_dtype((torch.float32,), h=h, x=x, condition=condition)
        return BY_DESIGN if other else None
    if other := other_dtype(KERNEL_DTYPES, input=h):
        return other
    if x.dtype != h.dtype or (condition is not None and condition.dtype != h.dtype):
        return "inputs of several dtypes"
    channels = max(h.shape[1], x.shape[1])  # 2C; in a backward pass h is dout, and x is h
    return beyond_int32(channels * h.shape[2] * h.shape[3], "values of h in an image")


def _new_map(like: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    """A result of the size of `like`, in the order that the kernel writes for a map x."""
    if runs_triton(x):
        return torch.empty_like(like)
    is_vector = condition is not None and condition.shape[2:] != x.shape[2:]
    if is_vector or (x.shape[1] > 1 and x.stride(1) == 1):
        return new_channels_last(like, like.shape[1])
    return like.new_empty(like.shape)


GATED_RESIDUAL_BACKWARD = register(
    "gated_residual_backward",
    "(Tensor dout, Tensor h, Tensor? condition) -> Tensor",
    reference=gated_residual_backward_reference,
    fake=lambda dout, h, condition: _new_map(h, dout, condition),
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, _, condition = inputs
    ctx.save_for_backward(h, condition)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    h, condition = ctx.saved_tensors
    needs_h, needs_x, needs_condition = ctx.needs_input_grad
    dh = GATED_RESIDUAL_BACKWARD(dout, h, condition) if needs_h or needs_condition else None
    dcondition = dh if needs_condition else None
    if dcondition is not None and condition.shape != h.shape:
        dcondition = dcondition.sum((2, 3), keepdim=True)
    return dh, dout if needs_x else None, dcondition


GATED_RESIDUAL_FUSED = register(
    "gated_residual_fused",
    "(Tensor h, Tensor x, Tensor? condition) -> Tensor",
    reference=gated_residual_reference,
    fake=lambda h, x, condition: _new_map(x, x, condition),
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    gradient=(_setup_context, _backward),
    private=True,
)


GATED_RESIDUAL = register(
    "gated_residual",
    "(Tensor h, Tensor x, Tensor? condition) -> Tensor",
    reference=gated_residual_reference,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
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
