"""`gated_residual` as one kernel each way, where Triton owns it: schemas and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._registry import LIBRARY, define_triton

__all__ = ["fused_gated_residual", "refusal"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(h: Tensor, x: Tensor, condition: Tensor | None = None) -> str | None:
    """Why the kernel does not take these, or None."""
    if h.dtype not in _DTYPES:
        return f"{str(h.dtype).removeprefix('torch.')} input"
    if x.dtype != h.dtype or (condition is not None and condition.dtype != h.dtype):
        return "inputs of several dtypes"
    return None


def _fake(h: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(dout: Tensor, h: Tensor, condition: Tensor | None) -> Tensor:
    return torch.empty_like(h)


FUSED = define_triton(
    "gated_residual", "gated_residual_fused", "(Tensor h, Tensor x, Tensor? condition) -> Tensor",
    fake=_fake,
)  # fmt: skip
BACKWARD = define_triton(
    "gated_residual", "gated_residual_backward",
    "(Tensor dout, Tensor h, Tensor? condition) -> Tensor", fake=_fake_backward,
)  # fmt: skip


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, _, condition = inputs
    ctx.save_for_backward(h, condition)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    h, condition = ctx.saved_tensors
    needs_h, needs_x, needs_condition = ctx.needs_input_grad
    dh = BACKWARD(dout, h, condition) if needs_h or needs_condition else None
    dcondition = dh if needs_condition else None
    if dcondition is not None and condition.shape != h.shape:
        dcondition = dcondition.sum((2, 3), keepdim=True)
    return dh, dout if needs_x else None, dcondition


torch.library.register_autograd(
    "vqvae2_fast::gated_residual_fused", _backward, setup_context=_setup_context, lib=LIBRARY
)


def fused_gated_residual(h: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
    return FUSED(h, x, condition)
