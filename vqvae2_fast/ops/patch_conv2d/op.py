"""`patch_conv2d`: a convolution with any number of channels, with kernels for training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops import _training
from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._registry import BY_DESIGN, register, transforms_are_active
from vqvae2_fast.ops._training import new_channels_last
from vqvae2_fast.ops.causal_conv2d.op import live_weight

__all__ = [
    "MOST_WEIGHTS",
    "PATCH_CONV2D",
    "conv_in_one_order",
    "linear_in_one_order",
    "patch_conv2d_backward_reference",
    "patch_conv2d_reference",
]


def _padding(kernel: int, stride: int, top: int, left: int) -> tuple[int, int, int, int]:
    """Left, right, top and bottom, so that the large map is `stride` times as large as the small
    one. A negative size cuts."""
    both = kernel - stride
    return left, both - left, top, both - top


def patch_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    top: int,
    left: int,
    live: int,
    transposed: bool,
) -> Tensor:
    weight = live_weight(weight, live)
    padding = _padding(weight.shape[-1], stride, top, left)
    if not transposed:
        return F.conv2d(F.pad(x, padding), weight, bias, stride)
    y = F.pad(F.conv_transpose2d(x, weight, None, stride), [-size for size in padding])
    return y if bias is None else y + bias[:, None, None]


def patch_conv2d_backward_reference(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    top: int,
    left: int,
    live: int,
    transposed: bool,
    with_dx: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # A transposed convolution is the gradient of the direct one with respect to its input.
    weight = live_weight(weight, live)
    small, large = (x, dy) if transposed else (dy, x)
    padding = _padding(weight.shape[-1], stride, top, left)
    padded = F.pad(large, padding)
    dweight = live_weight(conv2d_weight(padded, weight.shape, small, stride), live)
    if not with_dx:
        dx = x.new_empty(0)
    elif transposed:
        dx = F.conv2d(padded, weight, stride=stride)
    else:
        dx = F.pad(conv2d_input(padded.shape, weight, dy, stride), [-size for size in padding])
    return dx, dweight, dy.sum((0, 2, 3))


# Values of a weight; with more, torch's convolution was faster: see the README.
MOST_WEIGHTS = 1 << 18


def _why_not_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    top: int,
    left: int,
    live: int,
    transposed: bool,
) -> str | None:
    """The kernels take square weights that are not too large, and maps whose sides are multiples
    of the stride."""
    outputs, channels, height, width = weight.shape
    if (
        height != width
        or weight.numel() > MOST_WEIGHTS
        or 0 in (outputs, channels, height * (height - 1) + live, x.numel())
    ):
        return BY_DESIGN
    if not transposed and (x.shape[2] % stride or x.shape[3] % stride):
        return BY_DESIGN
    return other_dtype((torch.float32,), x=x, weight=weight, bias=bias)


def _why_not_backward(dy: Tensor, x: Tensor, weight: Tensor, *options: Any) -> str | None:
    reason = _why_not_kernel(x, weight, None, *options[:-1])
    return reason or other_dtype((torch.float32,), gradient=dy)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_channels_last(x, x.shape[1]) if options[-1] else x.new_empty(0)
    return dx, weight.new_empty(weight.shape), weight.new_empty(dy.shape[1])


# dy, of the size of the result, and the arguments of `patch_conv2d` to dx, dweight and dbias.
# Without `with_dx`, as for an image, dx is empty.
PATCH_CONV2D_BACKWARD = register(
    "patch_conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight, int stride, int top, int left, int live, "
    "bool transposed, bool with_dx) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference=patch_conv2d_backward_reference,
    fake=_backward_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    with_dx = ctx.needs_input_grad[0]
    dx, dweight, dbias = PATCH_CONV2D_BACKWARD(dy, *ctx.saved_tensors, *ctx.options, with_dx)
    return dx if with_dx else None, dweight, dbias if ctx.has_bias else None, *(None,) * 5


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    top: int,
    left: int,
    live: int,
    transposed: bool,
) -> Tensor:
    height, width = x.shape[2:]
    if transposed:
        return new_channels_last(x, weight.shape[1], (stride * height, stride * width))
    return new_channels_last(x, weight.shape[0], (height // stride, width // stride))


def _why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    top: int = 0,
    left: int = 0,
    live: int = 1,
    transposed: bool = False,
) -> str | None:
    trains = _training.is_training_call(x, weight, bias, products=1, least=0)
    if x.dim() != 4 or not trains:
        return BY_DESIGN
    return _why_not_kernel(x, weight, bias, stride, top, left, live, transposed)


# x [B, C, stride·H, stride·W], transposed [B, O, H, W]; weight [O, C, k, k]; bias [O], transposed
# [C], or None. Position (i, j) of the small map [B, O, H, W] meets the large map's rows from
# stride·i − top on and its columns from stride·j − left on; of the kernel's last row, `live` taps
# count. Returns [B, O, H, W], transposed [B, C, stride·H, stride·W].
PATCH_CONV2D = register(
    "patch_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, int stride, int top, int left, int live, "
    "bool transposed) -> Tensor",
    reference=patch_conv2d_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not,
    gradient=(_setup_context, _backward),
    private=True,
)


def _in_one_order(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`conv_in_one_order` by the kernel, or None where it does not compute the call."""
    side = weight.shape[-1]
    arguments = (x, weight, bias, 1, side // 2, side // 2, side, False)
    if (
        not x.is_cpu
        or torch.compiler.is_compiling()
        or transforms_are_active()
        or _why_not_kernel(*arguments) is not None
    ):
        return None
    result: Tensor = PATCH_CONV2D.kernel(*arguments)
    return result


def conv_in_one_order(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution `[B, C, H, W]` to `[B, O, H, W]` by a square kernel of an odd side.

    On a CPU in float32 it has the same bits in any batch and on any number of threads, which the
    sums of libraries have not. Graphs that are compiled or exported have PyTorch's own convolution.
    """
    found = _in_one_order(x, weight, bias)
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, bias, padding=padding) if found is None else found


def linear_in_one_order(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of vectors `[..., C]`, as `conv_in_one_order`, in 1.2 to 5 times its time."""
    maps = x.reshape(1, -1, 1, weight.shape[1]).permute(0, 3, 1, 2)  # [1, C, N, 1]
    sums = _in_one_order(maps, weight[:, :, None, None], bias)  # [1, O, N, 1]
    if sums is None:
        return F.linear(x, weight, bias)
    return sums.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))
