"""Reference of `causal_conv2d`, and the table of masks: which taps of a kernel are live."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MASKS", "causal_conv2d_reference", "live_taps", "placement", "tap_mask"]

MASKS = ("exclude", "include", "down", "downright")


def live_taps(mask: str, kernel_height: int, kernel_width: int) -> list[tuple[int, int, int, int]]:
    """Live taps of a mask as (row offset, column offset, kernel row, kernel column).

    Offsets are from the output position; row offsets are at most 0, and in row 0 column offsets are
    below 0 (`exclude`) or at most 0 (`include`, `downright`). `down` reads rows above only.
    Taps come in the order of the kernel's rows and columns.
    """
    columns_left = kernel_width - 1 if mask == "downright" else kernel_width // 2
    shift = 1 if mask == "down" else 0
    current_columns = {
        "exclude": kernel_width // 2,
        "include": kernel_width // 2 + 1,
        "down": kernel_width,
        "downright": kernel_width,
    }[mask]
    taps = []
    for row in range(kernel_height):
        last = row == kernel_height - 1
        for column in range(current_columns if last else kernel_width):
            taps.append((row - (kernel_height - 1) - shift, column - columns_left, row, column))
    return taps


def tap_mask(mask: str, kernel_height: int, kernel_width: int) -> Tensor:
    """Bool `[kh, kw]` on the CPU: True where a tap is live."""
    # On the CPU even while a model is built on another device: its taps are counted there.
    live = torch.zeros(kernel_height, kernel_width, dtype=torch.bool, device="cpu")
    for _, _, row, column in live_taps(mask, kernel_height, kernel_width):
        live[row, column] = True
    return live


def placement(mask: str, kernel_height: int, kernel_width: int) -> tuple[int, int, int]:
    """Rows that a kernel begins above the position, columns before it, and the live taps of its
    last row; mask `same` is a kernel all around."""
    centre = kernel_width // 2
    return {
        "exclude": (kernel_height - 1, centre, centre),
        "include": (kernel_height - 1, centre, centre + 1),
        "down": (kernel_height, centre, kernel_width),
        "downright": (kernel_height - 1, kernel_width - 1, kernel_width),
        "same": (kernel_height // 2, centre, kernel_width),
    }[mask]


def causal_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, mask: str) -> Tensor:
    kernel_height, kernel_width = weight.shape[2:]
    if mask in ("exclude", "include"):
        # The dead taps end the last kernel row; a product keeps NaN there out of the result's way
        # only if it is replaced, so they are cut, not multiplied.
        first_dead = kernel_width // 2 + (mask == "include")
        last_row = F.pad(weight[:, :, -1:, :first_dead], (0, kernel_width - first_dead))
        weight = torch.cat([weight[:, :, :-1], last_row], dim=2)
    if mask == "downright":
        padding = (kernel_width - 1, 0, kernel_height - 1, 0)
    else:
        padding = (kernel_width // 2, kernel_width // 2, kernel_height - 1, 0)
    if mask == "down":
        # One row further up: the padding gains a row and the input loses its last.
        padding = (*padding[:2], padding[2] + 1, -1)
    return F.conv2d(F.pad(x, padding), weight, bias)
