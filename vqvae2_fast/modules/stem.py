"""Convolutions of code maps: a sum of gathered weight columns, never a one-hot map.

The stem makes a prior strictly causal: it sees only codes before a position.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.causal_conv import ConvWeight

__all__ = [
    "CausalStem",
    "CodeConv2d",
    "bias_map",
    "gather_sum",
]


def gather_sum(codes: Tensor, convolutions: list[CodeConv2d]) -> Tensor:
    """Sum of the convolutions of a one-hot map.

    Args:
        codes: int64 `[B, H, W]`, each in 0..K-1 (checked by the caller).

    Returns:
        `[B, C, H, W]`, channels last in memory.
    """
    height, width = codes.shape[1:]
    table = torch.cat([conv.table() for conv in convolutions])
    offsets = [offset for conv in convolutions for offset in conv.offsets]
    out = ops.code_conv2d(codes, table, offsets)  # [B, C, H, W]
    return out + bias_map(convolutions, height, width).permute(2, 0, 1)


def bias_map(convolutions: list[CodeConv2d], height: int, width: int) -> Tensor:
    """`[H, W, C]`: sum of the biases, each shifted with its convolution and filled with zeros."""
    shifted = []
    for conv in convolutions:
        rows_down, columns_right = conv.shift
        if (rows_down, columns_right) == (0, 0):
            bias = conv.bias.expand(height, width, -1)
        else:
            rows = torch.arange(height, device=conv.bias.device) >= rows_down
            columns = torch.arange(width, device=conv.bias.device) >= columns_right
            bias = (rows[:, None] & columns)[:, :, None] * conv.bias
        shifted.append(bias)
    return functools.reduce(torch.add, shifted)


class CodeConv2d(nn.Module):
    """Weights of a convolution over one-hot codes, kept as one column per tap and code.

    Args:
        padding: Rows and columns added to the map on the (left, right, top, bottom), negative to
            cut: this places the kernel, and a shift of the output is a shift of the padding.
    """

    def __init__(
        self,
        num_embeddings: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        padding: tuple[int, int, int, int],
        *,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.kernel_size = kernel_size
        self.padding = padding
        self.kernel = ConvWeight(
            (out_channels, num_embeddings, *kernel_size), weight_norm=weight_norm, one_hot=True
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))

    @property
    def shift(self) -> tuple[int, int]:
        """Rows that the output moves down and columns that it moves right, bias included."""
        _, right, _, bottom = self.padding
        return max(0, -bottom), max(0, -right)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(row, column) of each tap relative to the output position, in the kernel's order."""
        left, _, top, _ = self.padding
        height, width = self.kernel_size
        return [(row - top, column - left) for row in range(height) for column in range(width)]

    def table(self, weight: Tensor | None = None) -> Tensor:
        """`[taps, K, C]` of the kernel's weight, or of the one given."""
        weight = self.kernel() if weight is None else weight
        return weight.flatten(2).permute(2, 1, 0)  # [C, K, taps] -> [taps, K, C]

    def forward(self, codes: Tensor) -> Tensor:
        return gather_sum(codes, [self])


class CausalStem(nn.Module):
    """Two streams added: rows above shifted down, and columns to the left shifted right.

    `above` has a kernel k//2 × k ending one row up, `left` a kernel (k+1)//2 × k//2 ending one
    column to the left; k is made odd. This is the down-shifted and right-shifted pair of section
    2 of https://arxiv.org/abs/1712.09763, in the kernel sizes of the PyTorch port; as there, the
    biases are shifted too: row 0 has no bias of `above`, column 0 none of `left`.
    """

    def __init__(
        self, num_embeddings: int, channels: int, kernel_size: int, *, weight_norm: bool = True
    ) -> None:
        super().__init__()
        if kernel_size < 2:
            raise ValueError(f"expected kernel_size >= 2, got {kernel_size}.")
        width = kernel_size + 1 - kernel_size % 2
        half = width // 2
        self.above = CodeConv2d(
            num_embeddings, channels, (half, width), (half, half, half, -1), weight_norm=weight_norm
        )
        left_height = (width + 1) // 2
        self.left = CodeConv2d(
            num_embeddings,
            channels,
            (left_height, half),
            (half, -1, left_height - 1, 0),
            weight_norm=weight_norm,
        )

    def forward(self, codes: Tensor) -> Tensor:
        """int64 `[B, H, W]` -> `[B, C, H, W]`; position p sees codes at positions < p."""
        return gather_sum(codes, [self.above, self.left])
