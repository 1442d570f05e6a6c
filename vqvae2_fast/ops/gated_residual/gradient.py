"""`gated_residual` as one kernel forward and one backward: the opaque operator and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import KERNEL_DTYPES, beyond_int32, other_dtype
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops._triton import runs_triton
from vqvae2_fast.ops.gated_residual.reference import (
    gated_residual_backward_reference,
    gated_residual_reference,
)

__all__ = ["GATED_RESIDUAL_FUSED", "why_not"]


def why_not(h: Tensor, x: Tensor, condition: Tensor | None = None) -> str | None:
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
    why_not=why_not,
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
    why_not=why_not,
    gradient=(_setup_context, _backward),
    private=True,
)
