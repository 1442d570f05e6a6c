"""`causal_conv2d`: a convolution over the positions that raster order allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops._checks import check_floating, check_same_device, described
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.causal_conv2d.fused import (
    fused_causal_conv2d,
    is_left_to_the_library,
    refusal,
)
from vqvae2_fast.ops.causal_conv2d.reference import (
    MASKS,
    causal_conv2d_reference,
    live_taps,
    placement,
    tap_mask,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CAUSAL_CONV2D", "causal_conv2d", "live_taps", "placement", "tap_mask"]

CAUSAL_CONV2D = register(
    "causal_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, str mask) -> Tensor",
    reference=causal_conv2d_reference,
    owners={"cuda": "triton"},
    refusal=refusal,
    by_design=is_left_to_the_library,
    fused=fused_causal_conv2d,
)


def causal_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask: str) -> Tensor:
    """Convolution whose output at (i, j) reads rows above i, and row i up to j as the mask says.

    The last kernel row lies on the current row. Kernel rows above are fully live.

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
        ValueError: An unknown mask, shapes that do not fit, an even kw where columns are centred.
        TypeError: A dtype that is not floating.
        RuntimeError: Tensors on different devices.
    """
    check_floating("causal_conv2d", x=x, weight=weight)
    check_same_device("causal_conv2d", x=x, weight=weight)
    if mask not in MASKS:
        raise ValueError(f"causal_conv2d: expected mask one of {', '.join(MASKS)}, got {mask!r}.")
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            "causal_conv2d: expected x [B, C_in, H, W] and weight [C_out, C_in, kh, kw], got x "
            f"{described(x)} and weight {described(weight)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"causal_conv2d: expected bias [{weight.shape[0]}], got {described(bias)}."
        )
    if mask != "downright" and weight.shape[3] % 2 == 0:
        raise ValueError(
            f"causal_conv2d: expected an odd kernel width for mask {mask!r}, got weight "
            f"{list(weight.shape)}."
        )
    return CAUSAL_CONV2D(x, weight, bias, mask)
