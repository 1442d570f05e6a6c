"""`patch_conv2d`: a convolution with any number of channels, with kernels for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops import _training
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops.patch_conv2d.gradient import backward, setup_context, why_not
from vqvae2_fast.ops.patch_conv2d.reference import patch_conv2d_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PATCH_CONV2D"]


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
    return why_not(x, weight, bias, stride, top, left, live, transposed)


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
    gradient=(setup_context, backward),
    private=True,
)
