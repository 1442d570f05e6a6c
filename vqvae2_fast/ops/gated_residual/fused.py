"""`gated_residual` as one kernel each way, where it has an owner: schemas and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import LIBRARY, define_triton
from vqvae2_fast.ops._triton import INTERPRETED

__all__ = ["fused_gated_residual", "is_reference", "refusal"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(h: Tensor, x: Tensor, condition: Tensor | None = None) -> str | None:
    """Why the kernel does not take these, or None."""
    if h.dtype not in _DTYPES:
        return f"{str(h.dtype).removeprefix('torch.')} input"
    if x.dtype != h.dtype or (condition is not None and condition.dtype != h.dtype):
        return "inputs of several dtypes"
    return None


def _is_compiled(x: Tensor) -> bool:
    """Whether it is the C++ kernel that computes on this device, and not a Triton one."""
    return x.device.type == "cpu" and not INTERPRETED


def is_reference(h: Tensor, x: Tensor, condition: Tensor | None = None) -> bool:
    """The kernel of the CPU is for training in float32."""
    if not _is_compiled(h):
        return False
    return any(t is not None and t.dtype != torch.float32 for t in (h, x, condition))


def _new_map(like: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    """A result of the size of `like`, in the order that the kernel writes for a map x."""
    if not _is_compiled(x):
        return torch.empty_like(like)
    is_vector = condition is not None and condition.shape[2:] != x.shape[2:]
    if is_vector or (x.shape[1] > 1 and x.stride(1) == 1):
        return new_channels_last(like, like.shape[1])
    return like.new_empty(like.shape)


def _fake(h: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    return _new_map(x, x, condition)


def _fake_backward(dout: Tensor, h: Tensor, condition: Tensor | None) -> Tensor:
    return _new_map(h, dout, condition)


FUSED = define_triton(
    "gated_residual",
    "gated_residual_fused",
    "(Tensor h, Tensor x, Tensor? condition) -> Tensor",
    fake=_fake,
)
BACKWARD = define_triton(
    "gated_residual",
    "gated_residual_backward",
    "(Tensor dout, Tensor h, Tensor? condition) -> Tensor",
    fake=_fake_backward,
)


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
