"""A plan as engine `cpu` packs it, in the layout of `csrc/cpu/sampler/plan.h`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.sampling.engines.cpu_describer import Describer, pad, pad_gates, round_up

if TYPE_CHECKING:
    from vqvae2_fast.sampling.engines.cpu_description import Description
    from vqvae2_fast.sampling.plan import ConditionPlan, SamplingPlan
    from vqvae2_fast.sampling.quantized import InputRanges

__all__ = ["described_plan"]


def described_plan(plan: SamplingPlan, ranges: InputRanges | None = None) -> Description:
    """A plan as `csrc/cpu/sampler/plan.cpp` reads it; `ranges` as in `draw_cpu`."""
    d = Describer(ranges)
    channels, layers = plan.channels, plan.layers
    inner = layers.inner_channels
    height, width = plan.size
    d.integers.update(
        height=height,
        width=width,
        num_embeddings=plan.num_embeddings,
        num_classes=plan.num_classes,
        num_labels=plan.num_labels,
        channels=round_up(channels),
        inner_channels=round_up(inner),
        num_layers=layers.num_layers,
        layers_per_block=plan.layers_per_block,
        num_output_layers=0 if plan.output_layers is None else plan.output_layers.num_layers,
    )
    _describe_stem(d, plan)
    d.add("background", plan.background)

    columns = [column for _, column in layers.conv1.above_offsets]
    current = layers.conv1.current_offsets
    d.integers.update(
        {
            "taps.rows_above": layers.conv1.rows_above,
            "taps.first_column": min(columns, default=0),
            "taps.num_columns": max(columns) - min(columns) + 1 if columns else 0,
            "taps.first_current": min(current, default=0),
            "taps.num_current": len(current),
        }
    )
    d.convolutions("conv1", layers.conv1, gates=False)
    d.convolutions("conv2", layers.conv2, gates=True)
    if layers.classes is not None:
        d.add("classes", pad_gates(layers.classes, [channels]))

    _describe_attention(d, plan)
    if plan.output_layers is not None:
        d.pointwise("output", plan.output_layers, [channels], whole=True)
        d.integers["output.inner_channels"] = round_up(plan.output_layers.inner_channels)
    d.matrices(
        "head",
        pad(plan.head, [plan.num_embeddings])[None],
        pad(plan.head_bias, [plan.num_embeddings]),
        [channels],
        whole=True,
    )
    d.integers["condition.sizes"] = [side for size in plan.condition_sizes for side in size]
    if plan.condition is not None:
        _describe_condition(d, plan.condition)
        assert layers.condition is not None
        d.pointwise_kernels(
            "layer_condition",
            layers.condition,
            [layers.condition.in_channels],
            [channels],
            gates=True,
            with_bias=False,
        )
    return d.description


def _describe_stem(d: Describer, plan: SamplingPlan) -> None:
    stem, channels = plan.stem, plan.channels
    d.integers["stem.above_offsets"] = [step for offset in stem.above_offsets for step in offset]
    d.integers["stem.num_left"] = len(stem.left_offsets)
    for name, table in (("above", stem.above), ("left", stem.left), ("bias", stem.bias)):
        d.add(f"stem.{name}", pad(table, [channels]))


def _describe_attention(d: Describer, plan: SamplingPlan) -> None:
    channels, attention = plan.channels, plan.attention
    d.integers["attention.num_heads"] = 0
    if attention is None:
        assert plan.merge is not None and plan.merge_bias is not None
        d.matrices(
            "merge",
            pad(plan.merge, [channels]),
            pad(plan.merge_bias, [channels]),
            [channels, 2],
        )
        return
    width = attention.query_bias.shape[1]
    head_dim = width // attention.num_heads
    d.integers["attention.num_heads"] = attention.num_heads
    d.integers["attention.head_dim"] = head_dim
    d.integers["attention.inner_channels"] = round_up(attention.key.inner_channels)
    joined, without_input = [channels, channels, 2], [channels, 2]
    d.pointwise("attention.key", attention.key, joined)
    d.pointwise("attention.query", attention.query, without_input)
    d.pointwise("attention.out", attention.out, [channels], whole=True)
    # The scale of the dot products is applied here, once.
    scale = head_dim**-0.5
    d.matrices(
        "attention.query_weight",
        pad(attention.query_weight * scale, [width]),
        pad(attention.query_bias * scale, [width]),
        without_input,
    )
    d.matrices(
        "attention.key_value_weight",
        pad(attention.key_value_weight, [2 * width]),
        pad(attention.key_value_bias, [2 * width]),
        joined,
    )


def _describe_condition(d: Describer, plan: ConditionPlan) -> None:
    channels = plan.stem_biases[0].shape[0]
    inner = plan.conv1.kernels[0].shape[0] if plan.num_layers else channels
    d.integers.update(
        {
            "condition.kernel": plan.kernel_size,
            "condition.channels": round_up(channels),
            "condition.inner_channels": round_up(inner),
            "condition.num_layers": plan.num_layers,
            "condition.down": plan.scale[0],
            "condition.right": plan.scale[1],
        }
    )
    for n, (table, bias) in enumerate(zip(plan.stems, plan.stem_biases, strict=True)):
        d.add(f"condition.stem{n}.table", pad(table, [channels]))
        d.add(f"condition.stem{n}.bias", pad(bias, [channels]))
    if plan.num_layers:
        d.centred("condition.first", plan.conv1, gates=False)
        d.centred("condition.second", plan.conv2, gates=True)
