"""`normed_conv2d`: a weight-normalised convolution, masked or not, with kernels for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from vqvae2_fast.ops import _training
from vqvae2_fast.ops._batch_part import dropout_seed
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops.causal_conv2d.op import causal_conv2d, placement
from vqvae2_fast.ops.dropout_mask.op import DROPOUT_MASK
from vqvae2_fast.ops.normed_conv2d.gradient import backward, setup_context, why_not
from vqvae2_fast.ops.normed_conv2d.reference import kept, normed_conv2d_reference, normed_weight
from vqvae2_fast.ops.patch_conv2d.op import PATCH_CONV2D

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LEAST_PRODUCTS", "NORMED_CONV2D", "normed_conv2d"]

# Products of a call, B·H·W · C_in · C_out, from which on tiles were measured to be faster than
# `patch_conv2d`, and the pointwise kernel than torch's convolution. `patch_conv2d` has the rest.
LEAST_PRODUCTS = 1 << 20
LEAST_POINTWISE_PRODUCTS = 1 << 16


def _why_not(
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
) -> str | None:
    is_pointwise = weight_v.shape[2:] == (1, 1)
    least = LEAST_POINTWISE_PRODUCTS if is_pointwise else LEAST_PRODUCTS
    products = x.numel() * weight_v.shape[0]
    floats = (x, weight_v, weight_g, bias)
    trains = _training.is_training_call(*floats, products=products, least=least)
    return why_not(*floats, *rest) if x.dim() == 4 and trains else BY_DESIGN


def rounds(weight_v: Tensor) -> bool:
    """Whether tiles multiply rounded factors: see the README for the sizes where that is faster."""
    return weight_v.shape[-1] == 3 and _training.rounds_convolutions()


NORMED_CONV2D = register(
    "normed_conv2d",
    "(Tensor x, Tensor weight_v, Tensor? weight_g, Tensor? bias, int top, int left, int live, "
    "bool elu, float dropout_p, Tensor? seed, bool rounded=False) -> Tensor",
    reference=normed_conv2d_reference,
    fake=lambda x, weight_v, *_: new_channels_last(x, weight_v.shape[0]),
    owners={"cpu": "cpu"},
    why_not=_why_not,
    gradient=(setup_context, backward),
    private=True,
)


def normed_conv2d(
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None,
    bias: Tensor | None,
    mask: str,
    live: Tensor | None = None,
    *,
    elu: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Convolution with the weight `g · v / ‖v‖` (eq. 2 of https://arxiv.org/abs/1602.07868).

    The norm goes over the live taps of an output channel. Private: the layers call it.

    Args:
        x: `[B, C_in, H, W]`.
        weight_v: `[C_out, C_in, kh, kw]`; dead taps are ignored and get zero gradient.
        weight_g: `[C_out, 1, 1, 1]`, or None for the weight v itself.
        bias: `[C_out]` or None.
        mask: As in `causal_conv2d`, or `same`: all around, for an odd kernel.
        live: Bool `[kh, kw]`, the mask's live taps; None if v is zero on the dead taps, or no tap
            is dead.
        elu: Convolve ELU(x).
        dropout_p: Probability of dropping a value before the convolution, by `dropout_mask` of
            (image, position, channel) with a seed from torch's generator.

    Returns:
        `[B, C_out, H, W]`.

    Note:
        Where a gradient is wanted, large float32 calls on a CPU use Winograd's tiles, and others
        `patch_conv2d`. The sums of tiles have another order, and the sum of a position may include
        later positions whose terms cancel up to rounding. Otherwise every position is summed
        separately.
    """
    # Drawn on x's device: the CPU kernel reads it from memory.
    seed = dropout_seed(x.device) if dropout_p > 0 else None
    where = placement(mask, *weight_v.shape[2:])
    if NORMED_CONV2D.takes(x, weight_v, weight_g, bias, *where):
        options = (elu, dropout_p, seed, rounds(weight_v))
        return NORMED_CONV2D.kernel(x, weight_v, weight_g, bias, *where, *options)
    x = _training.elu(x) if elu else x
    if seed is not None:
        x = x * kept(DROPOUT_MASK, x, dropout_p, seed)
    weight = normed_weight(weight_v if live is None else weight_v.where(live, 0.0), weight_g)
    if PATCH_CONV2D.takes(x, weight, bias, 1, *where, False):
        return PATCH_CONV2D.kernel(x, weight, bias, 1, *where, False)
    if mask == "same":
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    return causal_conv2d(x, weight, bias, mask)
