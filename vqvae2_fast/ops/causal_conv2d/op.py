"""`causal_conv2d`: a convolution over the positions that raster order allows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    beyond_int32,
    check_floating,
    check_same_device,
    checked_integer,
    described,
    misfit,
    other_dtype,
)
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops._training import new_channels_last
from vqvae2_fast.ops._triton import convolutions_take_tf32

__all__ = [
    "CAUSAL_CONV2D",
    "CAUSAL_CONV2D_FUSED",
    "MASKS",
    "causal_conv2d",
    "causal_conv2d_input_gradient_reference",
    "causal_conv2d_reference",
    "causal_conv2d_weight_gradient_reference",
    "check_mask",
    "live_taps",
    "live_weight",
    "placement",
    "tap_mask",
]

MASKS = ("exclude", "include", "down", "downright")


def check_mask(mask: str, kernel_width: int) -> None:
    if mask not in MASKS:
        raise ValueError(f"expected mask one of {', '.join(MASKS)}, got {mask!r}.")
    if mask != "downright" and kernel_width % 2 == 0:
        raise ValueError(f"expected an odd kernel width for mask {mask!r}, got {kernel_width}.")


def live_taps(mask: str, kernel_height: int, kernel_width: int) -> list[tuple[int, int, int, int]]:
    """Live taps of a mask as (row offset, column offset, kernel row, kernel column).

    Offsets are from the output position; row offsets are at most 0, and in row 0 column offsets are
    below 0 (`exclude`) or at most 0 (`include`, `downright`). `down` reads rows above only.
    Taps come in the order of the kernel's rows and columns.

    Raises:
        ValueError: An unknown mask, sizes that are not integers, or an even kernel_width where
            columns are centred.
    """
    kernel_height = checked_integer("kernel_height", kernel_height, 0)
    kernel_width = checked_integer("kernel_width", kernel_width, 0)
    check_mask(mask, kernel_width)
    top, left, live = placement(mask, kernel_height, kernel_width)
    return [
        (row - top, column - left, row, column)
        for row in range(kernel_height)
        for column in range(live if row == kernel_height - 1 else kernel_width)
    ]


def tap_mask(mask: str, kernel_height: int, kernel_width: int) -> Tensor:
    """Bool `[kh, kw]` on the CPU: True where a tap is live. Raises as `live_taps`."""
    taps = live_taps(mask, kernel_height, kernel_width)
    # On the CPU even while a model is built on another device, because its taps are counted here.
    live = torch.zeros(kernel_height, kernel_width, dtype=torch.bool, device="cpu")
    for _, _, row, column in taps:
        live[row, column] = True
    return live


def placement(mask: str, kernel_height: int, kernel_width: int) -> tuple[int, int, int]:
    """How many rows above the position and columns before it a kernel begins, and the live taps of
    its last row. The kernel of mask `same` lies all around the position."""
    centre = kernel_width // 2
    return {
        "exclude": (kernel_height - 1, centre, centre),
        "include": (kernel_height - 1, centre, centre + 1),
        "down": (kernel_height, centre, kernel_width),
        "downright": (kernel_height - 1, kernel_width - 1, kernel_width),
        "same": (kernel_height // 2, centre, kernel_width),
    }[mask]


def causal_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, mask: str) -> Tensor:
    padding, live = _padding(mask, *weight.shape[2:])
    return F.conv2d(F.pad(x, padding), live_weight(weight, live), bias)


def _padding(mask: str, height: int, width: int) -> tuple[tuple[int, int, int, int], int]:
    """The padding that a kernel needs (left, right, top, bottom), and its last row's live taps.

    For `down` the bottom is −1: the map loses its last row.
    """
    top, left, live = placement(mask, height, width)
    return (left, width - 1 - left, top, height - 1 - top), live


def live_weight(weight: Tensor, live: int) -> Tensor:
    """The weight with zeros for the dead taps, which are at the end of its last row.

    They are replaced rather than multiplied by zero, so NaN in them does not reach the result.
    """
    width = weight.shape[3]
    if live == width:
        return weight
    last_row = F.pad(weight[:, :, -1:, :live], (0, width - live))
    return torch.cat([weight[:, :, :-1], last_row], dim=2)


def causal_conv2d_input_gradient_reference(dout: Tensor, weight: Tensor, mask: str) -> Tensor:
    padding, live = _padding(mask, *weight.shape[2:])
    batch, _, height, width = dout.shape
    left, right, top, bottom = padding
    padded_size = (batch, weight.shape[1], height + top + bottom, width + left + right)
    dpadded = conv2d_input(padded_size, live_weight(weight, live), dout)
    return F.pad(dpadded, [-size for size in padding])


def causal_conv2d_weight_gradient_reference(
    dout: Tensor, x: Tensor, height: int, width: int, mask: str
) -> Tensor:
    padding, live = _padding(mask, height, width)
    size = (dout.shape[1], x.shape[1], height, width)
    dweight = conv2d_weight(F.pad(x, padding), size, dout)
    return live_weight(dweight, live)


def _why_not_kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any) -> str | None:
    if other := other_dtype(KERNEL_DTYPES, input=x):
        return other
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return "inputs of several dtypes"
    return beyond_int32(x.shape[0] * x.shape[2] * x.shape[3], "positions")


INPUT_GRADIENT = register(
    "causal_conv2d_input_gradient",
    "(Tensor dout, Tensor weight, str mask) -> Tensor",
    reference=causal_conv2d_input_gradient_reference,
    fake=lambda dout, weight, mask: new_channels_last(dout, weight.shape[1]),
    owners={"cuda": "triton"},
    why_not=lambda dout, weight, mask: _why_not_kernel(dout, weight),
    is_gradient=True,
)
WEIGHT_GRADIENT = register(
    "causal_conv2d_weight_gradient",
    "(Tensor dout, Tensor x, int height, int width, str mask) -> Tensor",
    reference=causal_conv2d_weight_gradient_reference,
    fake=lambda dout, x, height, width, mask: x.new_empty(
        (dout.shape[1], x.shape[1], height, width)
    ),
    owners={"cuda": "triton"},
    why_not=lambda dout, x, height, width, mask: _why_not_kernel(dout, x),
    is_gradient=True,
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


CAUSAL_CONV2D_FUSED = register(
    "causal_conv2d_fused",
    "(Tensor x, Tensor weight, Tensor? bias, str mask) -> Tensor",
    reference=causal_conv2d_reference,
    fake=lambda x, weight, bias, mask: new_channels_last(x, weight.shape[0]),
    owners={"cuda": "triton"},
    why_not=_why_not_kernel,
    gradient=(_setup_context, _backward),
    private=True,
)


# Architectures on which three TF32 products per multiply-add are expected to be faster than one in
# float32: those of data-centre cards, whose tensor cores are eight times as fast. On other cards
# the two rates are similar. See the README.
_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))
_FEWEST_CHANNELS = 32


def _why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any) -> str | None:
    return BY_DESIGN if _library_is_as_fast(x, weight) else _why_not_kernel(x, weight, bias)


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
