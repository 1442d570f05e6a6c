"""Weights of a plan in the layouts of `csrc/cuda/sampler`: `program.h` for the pixel phase,
`row_product.h` for the row phase.

Outputs come in *units* of two columns: neighbouring outputs, or a value and its gate. A unit's
weights lie side by side in the order in which a warp reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.sampling.plan import ConvPlan, GatedPlan, SamplingPlan

__all__ = ["pack", "pair_gates", "pixel_weights", "row_weights", "sizes_of"]

STEP_INPUTS = 16  # kStepInputs of row_product.h

# kLanes, kInputChunk of program.h.
LANES, CHUNK = 32, 128


def pair_gates(x: Tensor) -> Tensor:
    """`[..., 2C]`, values then gates -> value, gate, value, gate, …"""
    return torch.stack(x.chunk(2, -1), dim=-1).flatten(-2)


def _even(x: Tensor) -> Tensor:
    """The last dimension filled up to whole units."""
    return F.pad(x, (0, x.shape[-1] % 2))


def pixel_weights(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`[n, inputs, outputs]` -> `[n, units, padded inputs · 2]`.

    Inputs are filled up to a multiple of 32. Whole chunks of 128 inputs come first, each with its
    first column and then its second; the remaining inputs follow in chunks of 32.
    """
    n, inputs, _ = weight.shape
    units = _even(weight).unflatten(-1, (-1, 2)).permute(0, 2, 3, 1)  # [n, units, 2, inputs]
    units = F.pad(units, (0, -inputs % LANES))
    chunked = units.shape[-1] // CHUNK * CHUNK
    parts = [
        part.unflatten(-1, (-1, size)).transpose(2, 3).flatten(2)  # [n, units, chunks, 2, size]
        for part, size in ((units[..., :chunked], CHUNK), (units[..., chunked:], LANES))
        if part.shape[-1]
    ]
    packed = torch.cat(parts, dim=-1) if parts else units.new_empty(n, units.shape[1], 0)
    return packed.to(dtype).contiguous()


def row_weights(weight: Tensor, segments: int, dtype: torch.dtype) -> Tensor:
    """`[n, segments · inputs, outputs]` -> `[n, segments, steps, outputs, 16]` of `dtype`: the
    inputs of a segment by steps of 16, zero after the last."""
    weight = weight.unflatten(1, (segments, -1)) if segments else weight[:, None]
    weight = F.pad(weight, (0, 0, 0, -weight.shape[2] % STEP_INPUTS))
    return weight.unflatten(2, (-1, STEP_INPUTS)).transpose(-1, -2).to(dtype).contiguous()


def sizes_of(plan: SamplingPlan) -> dict[str, int]:
    """The integers of a plan that `network.cpp` and `stages.cpp` read by name."""
    layers, stem, attention = plan.layers, plan.stem, plan.attention
    height, width = plan.size
    columns = [column for _, column in layers.conv1.above_offsets]
    current = layers.conv1.current_offsets
    sizes = {
        "height": height,
        "width": width,
        "num_embeddings": plan.num_embeddings,
        "num_classes": plan.num_classes,
        "num_labels": plan.num_labels,
        "channels": plan.channels,
        "inner_channels": layers.inner_channels,
        "num_layers": layers.num_layers,
        "layers_per_block": plan.layers_per_block,
        "rows_above": layers.conv1.rows_above,
        "first_column": min(columns, default=0),
        "num_columns": max(columns) - min(columns) + 1 if columns else 0,
        "first_current": min(current, default=0),
        "num_current": len(current),
        "stem.num_above": len(stem.above_offsets),
        "stem.num_left": len(stem.left_offsets),
        "num_heads": 0,
        "head_dim": 0,
        "attention.inner_channels": 0,
        "num_output_layers": 0,
        "output.inner_channels": 0,
        "condition.channels": 0,
        "condition.height": 0,
        "condition.width": 0,
    }
    if attention is not None:
        sizes["num_heads"] = attention.num_heads
        sizes["head_dim"] = attention.query_bias.shape[1] // attention.num_heads
        sizes["attention.inner_channels"] = attention.key.inner_channels
    if plan.output_layers is not None:
        sizes["num_output_layers"] = plan.output_layers.num_layers
        sizes["output.inner_channels"] = plan.output_layers.inner_channels
    if plan.condition is not None:
        assert layers.condition is not None
        sizes["condition.channels"] = layers.condition.in_channels
        sizes["condition.height"], sizes["condition.width"] = plan.condition.sizes[-1]
    return sizes


def pack(plan: SamplingPlan, pixel: torch.dtype, row: torch.dtype) -> dict[str, Tensor]:
    """The tensors on the plan's device whose addresses the same files read by name.

    Args:
        pixel, row: dtype of the weights of the two phases, float32 or bfloat16.
    """
    layers, stem = plan.layers, plan.stem
    tensors = {
        "stem.above": stem.above,
        "stem.above_taps": torch.tensor(
            stem.above_offsets, dtype=torch.int32, device=plan.device
        ).view(-1, 2),
        "stem.left": stem.left,
        "stem.bias": stem.bias,
        "background": plan.background,
    }

    def matrices(name: str, weight: Tensor, bias: Tensor) -> None:
        tensors[f"{name}.weight"] = pixel_weights(weight, pixel)
        tensors[f"{name}.bias"] = _even(bias)

    def convolution(name: str, conv: ConvPlan, order: Callable[[Tensor], Tensor]) -> None:
        """Of all layers; `order` puts outputs, the last dimension, into units."""
        tensors[f"{name}.above"] = row_weights(order(conv.above), conv.rows_above, row)
        matrices(name, order(conv.current), order(conv.bias))

    def pointwise(name: str, gated: GatedPlan) -> None:
        weight = gated.conv1.current
        if gated.auxiliary is not None:
            weight = torch.cat([weight, gated.auxiliary], dim=1)
        matrices(f"{name}.first", weight, gated.conv1.bias)
        matrices(f"{name}.second", pair_gates(gated.conv2.current), pair_gates(gated.conv2.bias))

    convolution("conv1", layers.conv1, _even)
    convolution("conv2", layers.conv2, pair_gates)
    if layers.classes is not None:
        tensors["classes"] = pair_gates(layers.classes)
    if layers.condition is not None:
        tensors["condition.weight"] = row_weights(pair_gates(layers.condition.current), 1, row)
    if plan.attention is None:
        assert plan.merge is not None and plan.merge_bias is not None
        matrices("merge", plan.merge, plan.merge_bias)
    else:
        attention = plan.attention
        pointwise("key", attention.key)
        pointwise("query", attention.query)
        pointwise("out", attention.out)
        # The scale of the dot products is applied here, once.
        scale = (attention.query_bias.shape[1] // attention.num_heads) ** -0.5
        matrices("query_weight", attention.query_weight * scale, attention.query_bias * scale)
        matrices("key_value_weight", attention.key_value_weight, attention.key_value_bias)
    if plan.output_layers is not None:
        pointwise("output", plan.output_layers)
    matrices("head", plan.head[None], plan.head_bias[None])
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
