"""Maps `[B, C, H, W]` as the CPU's kernels write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["new_channels_last"]


def new_channels_last(like: Tensor, channels: int) -> Tensor:
    """An empty map with `like`'s images and positions, channels last in memory and no view."""
    batch, _, height, width = like.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return like.new_empty_strided((batch, channels, height, width), strides)
