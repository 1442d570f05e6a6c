"""The conditioning stack: features of all coarser code maps, at the size of the finest of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from vqvae2_fast.modules.gated import GatedResidual, upsample_nearest
from vqvae2_fast.modules.stem import CodeConv2d

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ConditionStack"]


class ConditionStack(nn.Module):
    """Coarser maps -> features `[B, C, h, w]`, h and w those of the finest condition.

    f = conv(map_0); for each finer map f = nearest(f) + conv(map); then gated residual layers that
    see all around. The maps are known before the level's own codes, so nothing here needs to be
    causal.
    """

    def __init__(
        self,
        num_embeddings: int,
        channels: int,
        num_maps: int,
        num_layers: int,
        kernel_size: int,
        *,
        dropout: float = 0.0,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"expected an odd condition_kernel_size, got {kernel_size}.")
        half = kernel_size // 2
        self.stems = nn.ModuleList(
            CodeConv2d(
                num_embeddings,
                channels,
                (kernel_size, kernel_size),
                (half, half, half, half),
                weight_norm=weight_norm,
            )
            for _ in range(num_maps)
        )
        self.layers = nn.ModuleList(
            GatedResidual(channels, channels, kernel_size, dropout=dropout, weight_norm=weight_norm)
            for _ in range(num_layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps: int64 `[B, h, w]` each, coarse to fine."""
        features = self.stems[0](maps[0])
        for stem, codes in zip(self.stems[1:], maps[1:], strict=True):
            height, width = codes.shape[1:]
            scale = (height // features.shape[2], width // features.shape[3])
            features = upsample_nearest(features, scale, height) + stem(codes)
        for layer in self.layers:
            features = layer(features)
        return features
