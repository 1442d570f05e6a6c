"""The residual block of the encoders and decoders."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae2_fast.modules.trained_conv import PlainConv2d

__all__ = ["ResidualBlock"]


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
