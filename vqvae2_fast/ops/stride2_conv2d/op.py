"""`stride2_conv2d`: a 4×4 convolution of stride 2 or its transpose, with kernels for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops import _training
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops.normed_conv2d.op import LEAST_PRODUCTS
from vqvae2_fast.ops.patch_conv2d.op import PATCH_CONV2D
from vqvae2_fast.ops.stride2_conv2d.gradient import backward, setup_context, why_not
from vqvae2_fast.ops.stride2_conv2d.reference import stride2_conv2d_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STRIDE2_CONV2D", "stride2_conv2d"]


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    height, width = x.shape[2:]
    if transposed:
        return new_channels_last(x, weight.shape[1], (2 * height, 2 * width))
    return new_channels_last(x, weight.shape[0], (height // 2, width // 2))


def _why_not(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> str | None:
    products = x.numel() * (weight.shape[1] if transposed else weight.shape[0] // 4)
    trains = _training.is_training_call(x, weight, bias, products=products, least=LEAST_PRODUCTS)
    if x.dim() != 4 or not trains:
        return BY_DESIGN
    return why_not(x, weight, bias, transposed)


STRIDE2_CONV2D = register(
    "stride2_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor",
    reference=stride2_conv2d_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not,
    gradient=(setup_context, backward),
    private=True,
)


def stride2_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool = False
) -> Tensor:
    """`F.conv2d(x, weight, bias, stride=2, padding=1)`, or `F.conv_transpose2d` in the same way.

    Private: the encoders and decoders call it.

    Args:
        x: `[B, C, 2H, 2W]`; transposed `[B, O, H, W]`.
        weight: `[O, C, 4, 4]`.
        bias: `[O]`, transposed `[C]`, or None.

    Returns:
        `[B, O, H, W]`; transposed `[B, C, 2H, 2W]`.

    Note:
        Where a gradient is wanted, large float32 calls on a CPU use Winograd's tiles, as in
        `normed_conv2d`, and others `patch_conv2d`. Without gradients every position is summed
        separately.
    """
    if not STRIDE2_CONV2D.takes(x, weight, bias, transposed):
        options = (2, 1, 1, 4, transposed)  # stride, top, left, live
        if PATCH_CONV2D.takes(x, weight, bias, *options):
            return PATCH_CONV2D.kernel(x, weight, bias, *options)
    return STRIDE2_CONV2D(x, weight, bias, transposed)
