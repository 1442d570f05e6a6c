"""`PixelSNAIL` as a plan: its weights folded and stacked for the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.modules.stem import bias_map
from vqvae2_fast.sampling.plan import (
    AttentionPlan,
    ConditionPlan,
    ConvPlan,
    GatedPlan,
    SamplingPlan,
    StemPlan,
    conv_plan,
    stem_plan,
)
from vqvae2_fast.sampling.prior import PriorInterface, interface_of, interface_of_prior

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vqvae2_fast.modules.causal_conv import ConvWeight
    from vqvae2_fast.modules.stem import CausalStem

__all__ = ["pixelsnail_plan"]


@interface_of.register(PixelSNAIL)
def _interface_of_pixelsnail(prior: PixelSNAIL) -> PriorInterface:
    return interface_of_prior(prior, lambda: pixelsnail_plan(prior))


def pixelsnail_plan(prior: PixelSNAIL) -> SamplingPlan:
    """The plan of a `PixelSNAIL` with its weights as they are now."""
    config = prior.config
    # The type of nn.ModuleList only says that its items are modules.
    blocks: list[Any] = list(prior.blocks)
    background, head_bias = prior.background, prior.head.bias
    assert isinstance(background, Tensor) and head_bias is not None
    attention = merge = merge_bias = None
    if config.attention:
        attention = AttentionPlan(
            num_heads=config.num_heads,
            key=_gated([block.key for block in blocks]),
            query=_gated([block.query for block in blocks]),
            query_weight=_matrices(block.attention.query for block in blocks),
            query_bias=_biases(block.attention.query for block in blocks),
            key_value_weight=torch.cat(
                [
                    _matrices(block.attention.key for block in blocks),
                    _matrices(block.attention.value for block in blocks),
                ],
                dim=2,
            ),
            key_value_bias=torch.cat(
                [
                    _biases(block.attention.key for block in blocks),
                    _biases(block.attention.value for block in blocks),
                ],
                dim=1,
            ),
            out=_gated([block.out for block in blocks]),
        )
    else:
        merge = _matrices(block.merge for block in blocks)
        merge_bias = _biases(block.merge for block in blocks)
    output_layers = _gated(list(prior.output_layers)) if prior.output_layers else None
    return SamplingPlan(
        size=config.size,
        num_embeddings=config.num_embeddings,
        num_classes=config.num_classes,
        stem=_stem(prior.stem, config.size),
        layers=_gated([layer for block in blocks for layer in block.layers], config.mask),
        layers_per_block=config.layers_per_block,
        background=background[0].permute(1, 2, 0).contiguous(),  # [H, W, 2]
        attention=attention,
        merge=merge,
        merge_bias=merge_bias,
        output_layers=output_layers,
        head=_matrices([prior.head])[0],
        head_bias=head_bias,
        condition=_condition(prior),
    )


def _matrices(layers: Iterable[Any]) -> Tensor:
    """`[n, C_in, C_out]` of 1×1 layers."""
    return torch.stack([layer.kernel().flatten(1).t() for layer in layers])


def _biases(layers: Iterable[Any]) -> Tensor:
    return torch.stack([layer.bias for layer in layers])


def _gated(layers: Sequence[Any], mask: str | None = None) -> GatedPlan:
    first = layers[0]
    conv1_biases = [layer.conv1.bias for layer in layers]
    auxiliary = condition = classes = None
    if first.auxiliary is not None:
        auxiliary = _matrices(layer.auxiliary for layer in layers)
        conv1_biases = [layer.conv1.bias + layer.auxiliary.bias for layer in layers]
    if first.condition is not None:
        condition = _matrices(layer.condition for layer in layers)
    if first.classes is not None:
        classes = torch.stack([layer.classes.weight for layer in layers])
    return GatedPlan(
        conv1=_convolutions([layer.conv1.kernel for layer in layers], conv1_biases, mask),
        conv2=_convolutions(
            [layer.conv2.kernel for layer in layers], [layer.conv2.bias for layer in layers], mask
        ),
        auxiliary=auxiliary,
        condition=condition,
        classes=classes,
    )


def _convolutions(
    kernels: Sequence[ConvWeight], biases: Sequence[Tensor], mask: str | None
) -> ConvPlan:
    # For all of them: taking fresh memory costs more than filling it.
    scratch = torch.empty_like(kernels[0].weight_v)
    weights, scales = zip(*(kernel.unfolded(scratch) for kernel in kernels), strict=True)
    return conv_plan(weights, biases, mask, None if scales[0] is None else scales)


def _stem(stem: CausalStem, size: tuple[int, int]) -> StemPlan:
    streams = [stem.above, stem.left]
    taps = [
        (offset, columns)
        for stream in streams
        for offset, columns in zip(stream.offsets, stream.table(), strict=True)
    ]
    return stem_plan(taps, bias_map(streams, *size))


def _condition(prior: PixelSNAIL) -> ConditionPlan | None:
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
        stems=tuple(stem.table() for stem in stems),
        stem_biases=tuple(stem.bias for stem in stems),
        layers=tuple(
            (layer.conv1.kernel(), layer.conv1.bias, layer.conv2.kernel(), layer.conv2.bias)
            for layer in layers
        ),
    )
