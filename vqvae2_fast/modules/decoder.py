"""Residual blocks and transposed convolutions, from quantised features to a larger map."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae2_fast.modules.residual import ResidualBlock
from vqvae2_fast.modules.trained_conv import DoublingConv2d, PlainConv2d

__all__ = ["Decoder", "upsampler"]


class Decoder(nn.Module):
    """`[B, in_channels, h, w]` to `[B, out_channels, h·stride, w·stride]`: an encoder mirrored.

    A 3×3 convolution to C channels, residual blocks, ReLU; then log₂(stride) transposed
    convolutions 4×4 of stride 2 with ReLU between (from C channels, for stride 4 and more over C/2,
    to out_channels). No activation at the end. Strides 2 and 4 are the rosinality port's decoders
    layer for layer.

    Args:
        in_channels: Channels of the quantised features.
        out_channels: Channels of the image or of the finer level's features.
        channels: C ("hidden units").
        stride: A power of two, at least 2.
        num_residual_blocks: Residual blocks at the start.
        residual_channels: Channels inside a residual block ("residual units").
        rectified_skip: See `VQVAE2Config`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        stride: int,
        num_residual_blocks: int,
        residual_channels: int,
        rectified_skip: bool = False,
    ) -> None:
        super().__init__()
        doublings = stride.bit_length() - 1
        widths = [channels]
        if doublings > 1:
            widths = [channels] * (doublings - 1) + [max(channels // 2, 1)]
        layers: list[nn.Module] = [PlainConv2d(in_channels, channels, 3)]
        layers += [
            ResidualBlock(channels, residual_channels, rectified_skip)
            for _ in range(num_residual_blocks)
        ]
        layers.append(nn.ReLU(inplace=True))
        layers += _doublings([*widths, out_channels])
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def upsampler(channels: int, stride: int) -> nn.Sequential:
    """log₂(stride) transposed convolutions 4×4 of stride 2, ReLU between, channels unchanged."""
    return nn.Sequential(*_doublings([channels] * stride.bit_length()))


def _doublings(widths: list[int]) -> list[nn.Module]:
    """Transposed convolutions that double the size, from each width to the next, ReLU between."""
    layers: list[nn.Module] = []
    for width, next_width in zip(widths[:-1], widths[1:], strict=True):
        layers += [DoublingConv2d(width, next_width), nn.ReLU(True)]
    return layers[:-1]
