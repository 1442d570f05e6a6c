"""Empty maps `[B, C, H, W]` and heads `[B, heads, L, d]` in the layouts that CPU kernels write."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["new_channels_last", "new_heads"]


def new_channels_last(like: Tensor, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """An empty map with `like`'s images and its positions, or of another size; channels last in
    memory and no view."""
    batch = like.shape[0]
    height, width = like.shape[2:] if size is None else size
    strides = (height * width * channels, 1, width * channels, channels)
    return like.new_empty_strided((batch, channels, height, width), strides)


def new_heads(like: Tensor, channels: int) -> Tensor:
    """Empty `[B, heads, L, channels]`, in memory `[B, L, heads, channels]` and no view."""
    batch, heads, length, _ = like.shape
    strides = (length * heads * channels, channels, heads * channels, 1)
    return like.new_empty_strided((batch, heads, length, channels), strides)
