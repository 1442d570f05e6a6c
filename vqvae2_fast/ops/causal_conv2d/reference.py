"""References of `causal_conv2d` and its gradients, and the table of masks: which taps are live."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops._checks import checked_integer

__all__ = [
    "MASKS",
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
