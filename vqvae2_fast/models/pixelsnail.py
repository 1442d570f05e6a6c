"""PixelSNAIL over code maps: the prior of one level (section 3.2 of the VQ-VAE-2 paper).

https://arxiv.org/abs/1712.09763 with the paper's changes: causal multi-head attention every few
layers, dropout on its logits, a 1×1 residual stack on top, conditioning on all coarser maps, and
classes at any level. With mask `exclude`, weight normalisation and no classes it has the layers of
the widely used PyTorch port, weight for weight.

Sizes: B batch, K codes, C channels, H W of the code map, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae2_fast.models.configs import PixelSNAILConfig
from vqvae2_fast.models.prior import Prior, register_prior
from vqvae2_fast.modules.as_made import remember_layers
from vqvae2_fast.modules.attention import CausalAttention
from vqvae2_fast.modules.causal_conv import SameConv2d
from vqvae2_fast.modules.conditioning import ConditionStack
from vqvae2_fast.modules.gated import GatedResidual
from vqvae2_fast.modules.stem import CausalStem
from vqvae2_fast.ops._training import elu
from vqvae2_fast.ops.code_cross_entropy.op import code_cross_entropy

__all__ = ["PixelSNAIL", "PixelSNAILBlock"]


def background_coordinates(height: int, width: int) -> Tensor:
    """`[1, 2, H, W]`: (row − H/2)/H and (column − W/2)/W."""
    # From numbers, because for arithmetic on the meta device torch would import its compiler.
    rows = [[(row - height / 2) / height] * width for row in range(height)]
    columns = [[(column - width / 2) / width for column in range(width)]] * height
    # Of the defaults, as the layers of the module that holds it.
    return torch.tensor([[rows, columns]], dtype=None, device=None)


class PixelSNAILBlock(nn.Module):
    """Gated residual layers, then attention over all earlier positions.

    Keys and values come from (block input, layers' output, coordinates), queries from (layers'
    output, coordinates), each through a gated residual 1×1 layer; the attention's result enters the
    last 1×1 layer as its auxiliary input. Without attention a 1×1 layer that is given the
    coordinates takes its place.
    """

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__()
        channels, weight_norm = config.channels, config.weight_norm
        scale, condition_channels = (1, 1), 0
        if config.condition_sizes:
            height, width = config.condition_sizes[-1]
            scale = (config.size[0] // height, config.size[1] // width)
            condition_channels = config.condition_channels
        self.layers = nn.ModuleList(
            GatedResidual(
                channels,
                config.residual_channels,
                config.kernel_size,
                config.mask,
                condition_channels=condition_channels,
                condition_scale=scale,
                num_labels=config.num_labels,
                dropout=config.dropout,
                weight_norm=weight_norm,
            )
            for _ in range(config.layers_per_block)
        )
        self.attention: CausalAttention | None = None
        self.merge: SameConv2d | None = None
        if not config.attention:
            self.merge = SameConv2d(channels + 2, channels, weight_norm=weight_norm)
            return

        def pointwise(in_channels: int, auxiliary_channels: int = 0) -> GatedResidual:
            return GatedResidual(
                in_channels,
                channels,
                auxiliary_channels=auxiliary_channels,
                dropout=config.dropout,
                weight_norm=weight_norm,
            )

        self.key = pointwise(2 * channels + 2)
        self.query = pointwise(channels + 2)
        self.attention = CausalAttention(
            channels + 2,
            2 * channels + 2,
            channels // 2,
            config.num_heads,
            dropout=config.attention_dropout,
            dropout_on=config.attention_dropout_on,
            weight_norm=weight_norm,
        )
        self.out = pointwise(channels, auxiliary_channels=channels // 2)

    def segments(self) -> list[nn.Module]:
        """The layers one by one, since a block may be most of the network."""
        names = ("merge",) if self.attention is None else ("key", "query", "attention", "out")
        return [*self.layers, *(self.get_submodule(name) for name in names)]

    def forward(
        self, x: Tensor, background: Tensor, condition: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """x `[B, C, H, W]`, background `[B, 2, H, W]` -> `[B, C, H, W]`."""
        out = x
        for layer in self.layers:
            out = layer(out, condition=condition, labels=labels)
        if self.attention is None:
            assert self.merge is not None
            return self.merge(torch.cat([out, background], dim=1))
        key = self.key(torch.cat([x, out, background], dim=1))  # [B, 2C+2, H, W]
        query = self.query(torch.cat([out, background], dim=1))  # [B, C+2, H, W]
        return self.out(out, auxiliary=self.attention(query, key))


@register_prior("pixelsnail", PixelSNAILConfig)
class PixelSNAIL(Prior):
    """Autoregressive prior of one level's code map, in raster order.

    Raises:
        ValueError: An even condition_kernel_size, or condition sizes that do not divide one
            another.
    """

    background: Tensor
    config: PixelSNAILConfig

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__(config)
        sizes = config.condition_sizes
        for (height, width), (next_height, next_width) in zip(sizes, sizes[1:], strict=False):
            if next_height % height or next_width % width:
                raise ValueError(
                    f"each of condition_sizes must divide the next (coarse to fine), got {sizes}."
                )
        self.register_buffer("background", background_coordinates(*config.size))
        self.stem = CausalStem(
            config.num_embeddings,
            config.channels,
            config.kernel_size,
            weight_norm=config.weight_norm,
        )
        self.condition = None
        if sizes:
            self.condition = ConditionStack(
                config.num_embeddings,
                config.condition_channels,
                len(sizes),
                config.num_condition_layers,
                config.condition_kernel_size,
                dropout=config.dropout,
                weight_norm=config.weight_norm,
            )
        self.blocks = nn.ModuleList(PixelSNAILBlock(config) for _ in range(config.num_blocks))
        self.output_layers = nn.ModuleList(
            GatedResidual(
                config.channels,
                config.residual_channels,
                dropout=config.dropout,
                weight_norm=config.weight_norm,
            )
            for _ in range(config.num_output_layers)
        )
        self.head = SameConv2d(
            config.channels, config.num_embeddings, weight_norm=config.weight_norm
        )
        remember_layers(self, config)

    def segments(self) -> list[nn.Module]:
        first = () if self.condition is None else self.condition.layers
        blocks = (block for block in self.blocks if isinstance(block, PixelSNAILBlock))
        layers = (layer for block in blocks for layer in block.segments())
        return [*first, *layers, *self.output_layers]

    def logits(self, codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        return self.head(elu(self._features(codes, maps, labels)))

    def mean_nats(self, codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        features = elu(self._features(codes, maps, labels))
        assert self.head.bias is not None
        rows = features.permute(0, 2, 3, 1).flatten(0, 2)  # [B, C, h, W] -> [B·h·W, C]
        weight = self.head.kernel().flatten(1)  # [K, C, 1, 1] -> [K, C]
        return code_cross_entropy(rows, weight, self.head.bias, codes.flatten())

    def _features(self, codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        """`[B, C, h, W]`: the features from which the head computes logits."""
        features = None if self.condition is None else self.condition(maps)
        x = self.stem(codes)
        batch, height = codes.shape[:2]
        background = self.background[:, :, :height].expand(batch, -1, -1, -1)
        # It gets the memory order of the other maps, which concatenating would otherwise change:
        # channels_last, in calls that `vmap` takes.
        background = background.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x, background, features, labels)
        for layer in self.output_layers:
            x = layer(x)
        return x
