"""`PixelSNAIL` as a plan: its weights folded and stacked for the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.modules.as_made import layers_as_made
from vqvae2_fast.modules.stem import bias_map
from vqvae2_fast.sampling.folding import Folding
from vqvae2_fast.sampling.plan import (
    AttentionPlan,
    CentredPlan,
    ConditionPlan,
    ConvPlan,
    GatedPlan,
    SamplingPlan,
    StemPlan,
    conv_plan,
    stem_plan,
)
from vqvae2_fast.sampling.prior import (
    PriorInterface,
    alteration,
    interface_of,
    interface_of_prior,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vqvae2_fast.modules.causal_conv import ConvWeight
    from vqvae2_fast.modules.stem import CausalStem, CodeConv2d

__all__ = ["pixelsnail_plan"]


@interface_of.register(PixelSNAIL)
def _interface_of_pixelsnail(prior: PixelSNAIL) -> PriorInterface:
    return interface_of_prior(
        prior,
        lambda: pixelsnail_plan(prior),
        lambda: alteration(prior, layers_as_made(PixelSNAIL, prior.config)),
    )


def pixelsnail_plan(prior: PixelSNAIL) -> SamplingPlan:
    """The plan of a `PixelSNAIL` with its weights as they are now."""
    return _Folder(Folding(prior)).plan(prior)


class _Folder:
    """Makes the parts of a plan."""

    def __init__(self, folding: Folding) -> None:
        self._folding = folding

    def plan(self, prior: PixelSNAIL) -> SamplingPlan:
        config = prior.config
        # The type of nn.ModuleList only says that its items are modules.
        blocks: list[Any] = list(prior.blocks)
        background, head_bias = prior.background, prior.head.bias
        assert isinstance(background, Tensor) and head_bias is not None
        merge = merge_bias = None
        if not config.attention:
            merge = self._matrices(block.merge for block in blocks)
            merge_bias = _biases(block.merge for block in blocks)
        output_layers = self._gated(list(prior.output_layers)) if prior.output_layers else None
        return SamplingPlan(
            size=config.size,
            num_embeddings=config.num_embeddings,
            num_classes=config.num_classes,
            stem=self._stem(prior.stem, config.size),
            layers=self._gated([layer for block in blocks for layer in block.layers], config.mask),
            layers_per_block=config.layers_per_block,
            background=background[0].permute(1, 2, 0).contiguous(),  # [H, W, 2]
            attention=self._attention(blocks, config.num_heads) if config.attention else None,
            merge=merge,
            merge_bias=merge_bias,
            output_layers=output_layers,
            head=self._matrices([prior.head])[0],
            head_bias=head_bias,
            condition=self._condition(prior),
        )

    def _attention(self, blocks: list[Any], num_heads: int) -> AttentionPlan:
        attentions = [block.attention for block in blocks]
        pairs = [[layer.key for layer in attentions], [layer.value for layer in attentions]]
        return AttentionPlan(
            num_heads=num_heads,
            key=self._gated([block.key for block in blocks]),
            query=self._gated([block.query for block in blocks]),
            query_weight=self._matrices(layer.query for layer in attentions),
            query_bias=_biases(layer.query for layer in attentions),
            key_value_weight=torch.cat([self._matrices(layers) for layers in pairs], dim=2),
            key_value_bias=torch.cat([_biases(layers) for layers in pairs], dim=1),
            out=self._gated([block.out for block in blocks]),
        )

    def _matrices(self, layers: Iterable[Any]) -> Tensor:
        """`[n, C_in, C_out]` of 1×1 layers."""
        return torch.stack([self._folding.weight(x.kernel).flatten(1).t() for x in layers])

    def _gated(self, layers: Sequence[Any], mask: str | None = None) -> GatedPlan:
        first = layers[0]
        conv1_biases = [layer.conv1.bias for layer in layers]
        auxiliary = condition = classes = None
        if first.auxiliary is not None:
            auxiliary = self._matrices(layer.auxiliary for layer in layers)
            conv1_biases = [layer.conv1.bias + layer.auxiliary.bias for layer in layers]
        if first.condition is not None:
            condition = self._convolutions([layer.condition.kernel for layer in layers])
        if first.classes is not None:
            classes = torch.stack([layer.classes.weight for layer in layers])
        conv2_biases = [layer.conv2.bias for layer in layers]
        return GatedPlan(
            conv1=self._convolutions([x.conv1.kernel for x in layers], conv1_biases, mask),
            conv2=self._convolutions([x.conv2.kernel for x in layers], conv2_biases, mask),
            auxiliary=auxiliary,
            condition=condition,
            classes=classes,
        )

    def _convolutions(
        self,
        kernels: Sequence[ConvWeight],
        biases: Sequence[Tensor] | None = None,
        mask: str | None = None,
    ) -> ConvPlan:
        weights = [kernel.weight_v for kernel in kernels]
        return conv_plan(weights, biases, mask, self._scales(kernels))

    def _scales(self, kernels: Sequence[ConvWeight]) -> tuple[Tensor, ...] | None:
        """What to multiply each with; None if none of them is normed."""
        scales = [self._folding.scale(kernel) for kernel in kernels]
        if all(scale is None for scale in scales):
            return None
        ones = kernels[0].weight_v.new_ones(kernels[0].weight_v.shape[0], 1, 1, 1)
        return tuple(ones if scale is None else scale for scale in scales)

    def _stem(self, stem: CausalStem, size: tuple[int, int]) -> StemPlan:
        streams = [stem.above, stem.left]
        taps = [
            (offset, columns)
            for stream in streams
            for offset, columns in zip(stream.offsets, self._table(stream), strict=True)
        ]
        return stem_plan(taps, bias_map(streams, *size))

    def _table(self, convolution: CodeConv2d) -> Tensor:
        """`[taps, K, C]`."""
        return convolution.table(self._folding.weight(convolution.kernel))

    def _centred(self, layers: Sequence[Any]) -> CentredPlan:
        kernels = [layer.kernel for layer in layers]
        return CentredPlan(
            kernels=tuple(kernel.weight_v.detach() for kernel in kernels),
            scales=self._scales(kernels),
            biases=tuple(layer.bias for layer in layers),
        )

    def _condition(self, prior: PixelSNAIL) -> ConditionPlan | None:
        config = prior.config
        if prior.condition is None:
            return None
        stems: list[Any] = list(prior.condition.stems)
        layers: list[Any] = list(prior.condition.layers)
        height, width = config.condition_sizes[-1]
        return ConditionPlan(
            sizes=config.condition_sizes,
            scale=(config.size[0] // height, config.size[1] // width),
            kernel_size=config.condition_kernel_size,
            stems=tuple(self._table(stem) for stem in stems),
            stem_biases=tuple(stem.bias for stem in stems),
            conv1=self._centred([layer.conv1 for layer in layers]),
            conv2=self._centred([layer.conv2 for layer in layers]),
        )


def _biases(layers: Iterable[Any]) -> Tensor:
    return torch.stack([layer.bias for layer in layers])
