"""Strided convolutions and residual blocks, from an image or features to a smaller map."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae2_fast.modules.residual import ResidualBlock
from vqvae2_fast.modules.trained_conv import HalvingConv2d, PlainConv2d

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Features at 1/stride of the size: `[B, in_channels, H, W]` to `[B, C, H/stride, W/stride]`.

    log₂(stride) convolutions 4×4 of stride 2 (the first to C/2 channels, the others to C) and one
    of 3×3, with ReLU between; then residual blocks and a last ReLU. Strides 2 and 4 are the
    rosinality port's encoders layer for layer.

    Args:
        in_channels: Channels of the image or of the finer features.
        channels: C ("hidden units").
        stride: A power of two, at least 2.
        num_residual_blocks: Residual blocks at the end.
        residual_channels: Channels inside a residual block ("residual units").
        rectified_skip: See `VQVAE2Config`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        num_residual_blocks: int,
        residual_channels: int,
        rectified_skip: bool = False,
    ) -> None:
        super().__init__()
        width = max(channels // 2, 1)
        layers: list[nn.Module] = []
        for _ in range(stride.bit_length() - 1):
            layers += [HalvingConv2d(in_channels, width), nn.ReLU(inplace=True)]
            in_channels, width = width, channels
        # No ReLU from here to the first block: the block opens with one.
        layers.append(PlainConv2d(in_channels, channels, 3))
        layers += [
            ResidualBlock(channels, residual_channels, rectified_skip)
            for _ in range(num_residual_blocks)
        ]
        layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
