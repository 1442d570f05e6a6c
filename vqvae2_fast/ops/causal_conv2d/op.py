"""`causal_conv2d`: a convolution over the positions that raster order allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops._checks import check_floating, check_same_device, described, misfit
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops._triton import convolutions_take_tf32
from vqvae2_fast.ops.causal_conv2d.gradient import CAUSAL_CONV2D_FUSED, why_not
from vqvae2_fast.ops.causal_conv2d.reference import (
    causal_conv2d_reference,
    check_mask,
    live_taps,
    placement,
    tap_mask,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CAUSAL_CONV2D", "causal_conv2d", "live_taps", "placement", "tap_mask"]

# Architectures on which three TF32 products per multiply-add are expected to be faster than one in
# float32: those of data-centre cards, whose tensor cores are eight times as fast. On other cards
# the two rates are similar. See the README.
_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))
_FEWEST_CHANNELS = 32


def _why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any) -> str | None:
    return BY_DESIGN if _library_is_as_fast(x, weight) else why_not(x, weight, bias)


def _library_is_as_fast(x: Tensor, weight: Tensor) -> bool:
    """Whether cuDNN or MIOpen with the full kernel is expected to be at least as fast."""
    if x.device.type != "cuda":
        return False
    if x.dtype != torch.float32 or min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return True
    if convolutions_take_tf32() or torch.is_autocast_enabled("cuda"):
        return True
    properties = torch.cuda.get_device_properties(x.device)
    amd = torch.version.hip is not None
    return amd or (properties.major, properties.minor) not in _CAPABILITIES


CAUSAL_CONV2D = register(
    "causal_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, str mask) -> Tensor",
    reference=causal_conv2d_reference,
    owners={"cuda": "triton"},
    why_not=_why_not,
    kernel=CAUSAL_CONV2D_FUSED.kernel,
)


def causal_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask: str) -> Tensor:
    """Convolution whose output at (i, j) reads rows above i, and row i up to j as the mask says.

    The last kernel row lies on the current row. All taps of the kernel rows above are live.

    Args:
        x: `[B, C_in, H, W]`, floating.
        weight: `[C_out, C_in, kh, kw]`. Values on dead taps are ignored and get zero gradient.
        bias: `[C_out]` or None.
        mask: `exclude`: columns centred, current row strictly left of the position;
            `include`: columns centred, current row up to and with the position;
            `down`: columns centred, shifted one row down: rows above only;
            `downright`: columns end at the position, which is read.

    Returns:
        `[B, C_out, H, W]`.

    Raises:
        ValueError: An unknown mask, shapes that do not fit, a map or a kernel without values, an
            even kw where columns are centred.
        TypeError: Not a tensor, or a dtype that is not floating.
        RuntimeError: Tensors on different devices.
    """
    check_floating(x=x, weight=weight)
    if bias is not None:
        check_floating(bias=bias)
    check_same_device(x=x, weight=weight, bias=bias)
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1]:
        expected = "x [B, C_in, H, W] and weight [C_out, C_in, kh, kw]"
        raise misfit(expected, x=x, weight=weight)
    check_mask(mask, weight.shape[3])
    if 0 in x.shape[2:] or 0 in (weight.shape[0], *weight.shape[2:]):
        raise misfit("H, W, C_out, kh and kw >= 1", x=x, weight=weight)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"expected bias [{weight.shape[0]}], got {described(bias)}.")
    return CAUSAL_CONV2D(x, weight, bias, mask)
