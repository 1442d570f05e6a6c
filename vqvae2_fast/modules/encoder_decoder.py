"""The encoder and the decoder of the VQ-VAE, their residual blocks and their convolutions.

The convolutions are torch modules that use our kernels when they train on a CPU. Evaluation,
autocast and other devices take torch's convolutions, as the operators say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from vqvae2_fast.ops.normed_conv2d.op import normed_conv2d
from vqvae2_fast.ops.stride2_conv2d.op import stride2_conv2d

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Decoder",
    "DoublingConv2d",
    "Encoder",
    "HalvingConv2d",
    "PlainConv2d",
    "ResidualBlock",
    "upsampler",
]


class PlainConv2d(nn.Conv2d):
    """A convolution of stride 1 with an odd kernel, which keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, input: Tensor) -> Tensor:
        return normed_conv2d(input, self.weight, None, self.bias, "same")


class HalvingConv2d(nn.Conv2d):
    """A 4×4 convolution of stride 2: half the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return stride2_conv2d(input, self.weight, self.bias)


class DoublingConv2d(nn.ConvTranspose2d):
    """A transposed 4×4 convolution of stride 2: twice the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return stride2_conv2d(input, self.weight, self.bias, transposed=True)


class ResidualBlock(nn.Module):
    """x + conv1×1(ReLU(conv3×3(ReLU(x)))), without normalisation: `[B, C, H, W]` to the same.

    The block of sonnet's VQ-VAE example and of the rosinality port.

    Args:
        channels: C.
        residual_channels: Channels between the two convolutions ("residual units").
        rectified_skip: Add ReLU(x) instead of x; see `VQVAE2Config`.
    """

    def __init__(self, channels: int, residual_channels: int, rectified_skip: bool = False) -> None:
        super().__init__()
        self.rectified_skip = rectified_skip
        self.layers = nn.Sequential(
            nn.ReLU(),
            PlainConv2d(channels, residual_channels, 3),
            # This works in place: it overwrites a convolution's output, which no gradient needs.
            nn.ReLU(inplace=True),
            PlainConv2d(residual_channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.rectified_skip:
            x = x.relu()
        return x + self.layers(x)


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
