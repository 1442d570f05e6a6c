"""A discriminator that judges patches of an image (PatchGAN, https://arxiv.org/abs/1611.07004)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LEAST_SIDE", "PatchDiscriminator"]

LEAST_SIDE = 16  # pixels: a smaller image has no patch that padding does not dominate
_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Images `[B, C, H, W]` to scores `[B, 1, ~H/4, ~W/4]`, above 0 where a patch looks real.

    A score sees 34×34 pixels: 4×4 convolutions, two of stride 2 and two of stride 1. Groups are
    normalised instead of the batch, so that a score depends on its image alone.

    Args:
        image_channels: C of the images.
        channels: Channels after the first convolution; twice and four times as many follow.
    """

    def __init__(self, image_channels: int, channels: int = 48) -> None:
        super().__init__()

        def block(width: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False)
            return [convolution, nn.GroupNorm(_GROUPS, 2 * width), nn.LeakyReLU(0.2)]

        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, channels, 4, 2, 1),
            nn.LeakyReLU(0.2),
            *block(channels, 2),
            *block(2 * channels, 1),
            nn.Conv2d(4 * channels, 1, 4, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores
