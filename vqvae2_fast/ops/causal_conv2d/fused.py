"""`causal_conv2d` as kernels over the live taps, where Triton owns it: schemas and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import LIBRARY, define_triton

__all__ = ["fused_causal_conv2d", "is_left_to_the_library", "refusal"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Where three TF32 products a multiply-add are expected to be faster than float32's own: data-centre
# cards, whose tensor cores do eight times as much. On others both rates are alike. See the README.
_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))
_FEWEST_CHANNELS = 32


def is_left_to_the_library(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: str = "include"
) -> bool:
    """Calls for which cuDNN or MIOpen with the full kernel is expected to be as fast or faster."""
    if x.device.type != "cuda":
        return False
    if x.dtype != torch.float32 or min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return True
    if torch.backends.cudnn.allow_tf32 or torch.is_autocast_enabled("cuda"):
        return True
    properties = torch.cuda.get_device_properties(x.device)
    amd = torch.version.hip is not None
    return amd or (properties.major, properties.minor) not in _CAPABILITIES


def refusal(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: str = "include"
) -> str | None:
    """Why the kernels do not take these, or None."""
    if x.dtype not in _DTYPES:
        return f"{str(x.dtype).removeprefix('torch.')} input"
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return "inputs of several dtypes"
    if x.shape[0] * x.shape[2] * x.shape[3] >= 1 << 31:
        return "2³¹ positions or more"
    return None


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, mask: str) -> Tensor:
    return new_channels_last(x, weight.shape[0])


def _fake_input_gradient(dout: Tensor, weight: Tensor, mask: str) -> Tensor:
    return new_channels_last(dout, weight.shape[1])


def _fake_weight_gradient(dout: Tensor, x: Tensor, height: int, width: int, mask: str) -> Tensor:
    return x.new_empty((dout.shape[1], x.shape[1], height, width))


FUSED = define_triton(
    "causal_conv2d",
    "causal_conv2d_fused",
    "(Tensor x, Tensor weight, Tensor? bias, str mask) -> Tensor",
    fake=_fake,
)
INPUT_GRADIENT = define_triton(
    "causal_conv2d",
    "causal_conv2d_input_gradient",
    "(Tensor dout, Tensor weight, str mask) -> Tensor",
    fake=_fake_input_gradient,
)
WEIGHT_GRADIENT = define_triton(
    "causal_conv2d",
    "causal_conv2d_weight_gradient",
    "(Tensor dout, Tensor x, int height, int width, str mask) -> Tensor",
    fake=_fake_weight_gradient,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.mask = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    dx = INPUT_GRADIENT(dout, weight, ctx.mask) if needs_x else None
    dweight = WEIGHT_GRADIENT(dout, x, *weight.shape[2:], ctx.mask) if needs_weight else None
    return dx, dweight, dout.sum((0, 2, 3)) if needs_bias else None, None


torch.library.register_autograd(
    "vqvae2_fast::causal_conv2d_fused", _backward, setup_context=_setup_context, lib=LIBRARY
)


def fused_causal_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: str = "include"
) -> Tensor:
    return FUSED(x, weight, bias, mask)
