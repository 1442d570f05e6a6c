"""The residual block of the encoders and decoders."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ResidualBlock"]


class ResidualBlock(nn.Module):
    """x + conv1×1(ReLU(conv3×3(ReLU(x)))), without normalisation: `[B, C, H, W]` to the same.

    The block of sonnet's VQ-VAE example and of the rosinality port.

    Args:
        channels: C.
        residual_channels: Channels between the two convolutions ("residual units").
    """

    def __init__(self, channels: int, residual_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, residual_channels, 3, padding=1),
            # In place: it overwrites a convolution's output, which no gradient needs.
            nn.ReLU(inplace=True),
            nn.Conv2d(residual_channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
