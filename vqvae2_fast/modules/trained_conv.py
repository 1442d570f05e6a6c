"""Convolutions of the VQ-VAE: torch modules that use our kernels when they train on a CPU.

Evaluation, autocast and other devices take torch's convolutions, as the operators say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vqvae2_fast.ops.normed_conv2d.op import normed_conv2d
from vqvae2_fast.ops.stride2_conv2d.op import stride2_conv2d

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DoublingConv2d", "HalvingConv2d", "PlainConv2d"]


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
