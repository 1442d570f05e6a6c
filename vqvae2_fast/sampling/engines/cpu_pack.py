"""A plan as engine `cpu` packs it, in the layout of `csrc/cpu/sampler/plan.h`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.sampling.engines.cpu_description import (
    HALF_PANEL,
    PANEL,
    Block,
    Description,
    Format,
    Packing,
)
from vqvae2_fast.sampling.quantized import InputRanges, check_terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.sampling.plan import ConditionPlan, ConvPlan, GatedPlan, SamplingPlan

    # A dtype to which matrices are rounded, or what the rounding of inputs to int8 needs to know.
    Weights = torch.dtype | InputRanges

__all__ = ["described_plan"]

# Padding among the outputs and inputs of a `Packing`.
_ZEROS = -1
_FORMATS = {
    torch.float32: Format.FLOAT32,
    torch.bfloat16: Format.BFLOAT16,
    torch.int8: Format.INT8,
}


def _round_up(size: int) -> int:
    return -(-size // PANEL) * PANEL


def _pad(x: Tensor, parts: list[int], dim: int, *, last: bool = True, value: float = 0.0) -> Tensor:
    """x with each part of its dimension `dim` filled up to whole panels.

    Args:
        last: Whether the last part is filled up too.
    """
    pieces = list(x.split(parts, dim))
    for n, piece in enumerate(pieces):
        if n + 1 < len(pieces) or last:
            fill = _round_up(piece.shape[dim]) - piece.shape[dim]
            pieces[n] = F.pad(piece, [0, 0] * (-dim - 1) + [0, fill], value=value)
    return torch.cat(pieces, dim)


def _pad_gates(x: Tensor, parts: list[int], *, value: float = 0.0) -> Tensor:
    """`[..., 2C]`, values then gates -> `[..., 2·padded C]` in alternating half panels."""
    halves = [
        _pad(half, parts, -1, value=value).unflatten(-1, (-1, HALF_PANEL))
        for half in x.chunk(2, -1)
    ]
    return torch.stack(halves, dim=-2).flatten(-3)  # [..., C/16, 2, 16] -> [..., 2C]


class _Describer:
    """Collects a `Description`."""

    def __init__(self, weights: Weights) -> None:
        self.ranges = weights if isinstance(weights, InputRanges) else None
        self.form = _FORMATS[weights] if isinstance(weights, torch.dtype) else Format.QUADS
        self.form_of_condition = Format.FLOAT32 if self.form is Format.QUADS else self.form
        self.description = Description()
        self.integers = self.description.integers
        self.integers["format"] = self.form.value
        self.integers["condition.format"] = self.form_of_condition.value

    def add(self, name: str, tensor: Tensor) -> None:
        self.description.tensors[name] = tensor.detach()
        self.description.sizes[name] = tensor.numel()

    def pack(self, packing: Packing) -> None:
        self.description.packings.append(packing)
        if packing.scales:
            check_terms(len(packing.inputs) * len(packing.taps))
            count = len(packing.weights) * len(packing.outputs)
            self.description.sizes[packing.scales] = count

    def form_of(self, name: str) -> Format:
        return self.form_of_condition if "condition" in name else self.form

    def input_scales(self, name: str, parts: list[int], *, whole: bool = True) -> Tensor | None:
        """`[n, inputs]` of int8 inputs, padded with ones as the weights are with zeros."""
        if self.form_of(name) is not Format.QUADS:
            return None
        assert self.ranges is not None
        scales = _pad(self.ranges.scales(name, sum(parts)), parts, -1, last=whole, value=1.0)
        fill = -scales.shape[-1] % HALF_PANEL
        self.add(f"{name}.input_scale", F.pad(scales, (0, fill), value=1.0))
        return scales

    def matrices(
        self,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        parts: list[int],
        *,
        whole: bool = False,
    ) -> None:
        """Add weight `[n, inputs, outputs]` with padded outputs, its inputs of `parts`.

        Args:
            whole: Whether the last part is padded too.
        """
        n, num_inputs, num_outputs = weight.shape
        inputs = _pad(torch.arange(num_inputs) * num_outputs, parts, -1, last=whole, value=_ZEROS)
        form = self.form_of(name)
        words, panels = form.words(len(inputs)), num_outputs // PANEL
        self.description.sizes[f"{name}.weight"] = n * panels * words
        packing = Packing(
            name,
            form,
            weights=list(weight),
            factors=[],
            output_stride=1,
            outputs=torch.arange(num_outputs),
            inputs=inputs,
            taps=[0],
            blocks=[Block(f"{name}.weight", 0, 0, 1, panels * words, words)],
            input_scales=self.input_scales(name, parts, whole=whole),
        )
        self.pack(packing)
        if bias is not None:
            self.add(f"{name}.bias", bias)

    def pointwise(
        self, name: str, plan: GatedPlan, parts: list[int], *, whole: bool = False
    ) -> None:
        """Add n pointwise gated layers over inputs of `parts`; `whole` pads the last part too."""
        weight, first = plan.conv1.current, parts
        if plan.auxiliary is not None:
            weight = torch.cat([weight, plan.auxiliary], dim=-2)
            first = [*parts, plan.auxiliary.shape[-2]]
        inner = plan.inner_channels
        self.matrices(
            f"{name}.first",
            _pad(weight, [inner], -1),
            _pad(plan.conv1.bias, [inner], -1),
            first,
            whole=whole and plan.auxiliary is None,
        )
        self.matrices(
            f"{name}.second",
            _pad_gates(plan.conv2.current, parts),
            _pad_gates(plan.conv2.bias, parts),
            [inner],
            whole=True,
        )

    def kernels(
        self,
        name: str,
        kernels: Sequence[Tensor],
        biases: Tensor,
        taps: list[int],
        blocks: list[Block],
        *,
        factors: Sequence[Tensor] = (),
        gates: bool,
    ) -> None:
        """Add n convolutions, whose `[C_out, C_in, kh, kw]` are read where the prior has them.

        Args:
            taps: Positions in a kernel, kh·kw, in the order of the blocks.
        """
        num_outputs, num_inputs, height, width = kernels[0].shape
        area, parts = height * width, [num_outputs // 2 if gates else num_outputs]

        def padded(x: Tensor, value: float = 0.0) -> Tensor:
            return _pad_gates(x, parts, value=value) if gates else _pad(x, parts, -1, value=value)

        self.add(f"{name}.bias", padded(biases))
        packing = Packing(
            name,
            self.form_of(name),
            weights=kernels,
            factors=factors,
            output_stride=num_inputs * area,
            outputs=padded(torch.arange(num_outputs), _ZEROS),
            inputs=_pad(torch.arange(num_inputs) * area, [num_inputs], -1, value=_ZEROS),
            taps=taps,
            blocks=blocks,
            input_scales=self.input_scales(name, [num_inputs]),
        )
        self.pack(packing)

    def convolutions(self, name: str, plan: ConvPlan, *, gates: bool) -> None:
        """Add n causal convolutions, their taps split into those above and in the current row."""
        width, form = plan.kernels[0].shape[-1], self.form_of(name)
        n, panels = len(plan.kernels), _num_panels(plan.kernels[0], gates)
        rows, num_above = plan.rows_above, len(plan.above_offsets)
        columns, num_current = num_above // max(1, rows), len(plan.current_offsets)
        # [n, panels, rows above, words of a row's taps] and [n, current taps, panels, words].
        inputs = _round_up(plan.in_channels)
        of_row, of_tap = form.words(columns * inputs), form.words(inputs)
        of_panel, of_panels = rows * of_row, panels * of_tap
        above, current = f"{name}.above", f"{name}.current"
        self.description.sizes[above] = n * panels * of_panel
        self.description.sizes[current] = n * num_current * of_panels
        blocks = [
            Block(above, row * of_row, row * columns, columns, panels * of_panel, of_panel)
            for row in range(rows)
        ]
        blocks += [
            Block(current, tap * of_panels, num_above + tap, 1, num_current * of_panels, of_tap)
            for tap in range(num_current)
        ]
        self.kernels(
            name,
            plan.kernels,
            plan.bias,
            taps=[row * width + column for row, column in plan.taps],
            blocks=blocks,
            factors=[scale.flatten() for scale in plan.scales or ()],
            gates=gates,
        )

    def centred(
        self, name: str, kernels: Sequence[Tensor], biases: Sequence[Tensor], *, gates: bool
    ) -> None:
        """Add n convolutions whose taps all lie in one matrix, in raster order."""
        _, num_inputs, height, width = kernels[0].shape
        panels, area = _num_panels(kernels[0], gates), height * width
        words = self.form_of(name).words(area * _round_up(num_inputs))
        self.description.sizes[f"{name}.weight"] = len(kernels) * panels * words
        self.kernels(
            name,
            kernels,
            torch.stack(list(biases)),
            taps=list(range(area)),
            blocks=[Block(f"{name}.weight", 0, 0, area, panels * words, words)],
            gates=gates,
        )


def _num_panels(kernel: Tensor, gates: bool) -> int:
    halves = 2 if gates else 1
    return _round_up(kernel.shape[0] // halves) * halves // PANEL


def described_plan(plan: SamplingPlan, weights: Weights = torch.float32) -> Description:
    """A plan as `csrc/cpu/sampler/plan.cpp` reads it."""
    d = _Describer(weights)
    channels, layers = plan.channels, plan.layers
    inner = layers.inner_channels
    height, width = plan.size
    d.integers.update(
        height=height,
        width=width,
        num_embeddings=plan.num_embeddings,
        num_classes=plan.num_classes,
        num_labels=plan.num_labels,
        channels=_round_up(channels),
        inner_channels=_round_up(inner),
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
        d.add("classes", _pad_gates(layers.classes, [channels]))

    _describe_attention(d, plan)
    if plan.output_layers is not None:
        d.pointwise("output", plan.output_layers, [channels], whole=True)
        d.integers["output.inner_channels"] = _round_up(plan.output_layers.inner_channels)
    d.matrices(
        "head",
        _pad(plan.head, [plan.num_embeddings], -1)[None],
        _pad(plan.head_bias, [plan.num_embeddings], -1),
        [channels],
        whole=True,
    )
    d.integers["condition.sizes"] = [side for size in plan.condition_sizes for side in size]
    if plan.condition is not None:
        _describe_condition(d, plan.condition)
        assert layers.condition is not None
        d.matrices(
            "layer_condition",
            _pad_gates(layers.condition, [channels]),
            None,
            [layers.condition.shape[1]],
            whole=True,
        )
    return d.description


def _describe_stem(d: _Describer, plan: SamplingPlan) -> None:
    stem, channels = plan.stem, plan.channels
    d.integers["stem.above_offsets"] = [step for offset in stem.above_offsets for step in offset]
    d.integers["stem.num_left"] = len(stem.left_offsets)
    for name, table in (("above", stem.above), ("left", stem.left), ("bias", stem.bias)):
        d.add(f"stem.{name}", _pad(table, [channels], -1))


def _describe_attention(d: _Describer, plan: SamplingPlan) -> None:
    channels, attention = plan.channels, plan.attention
    d.integers["attention.num_heads"] = 0
    if attention is None:
        assert plan.merge is not None and plan.merge_bias is not None
        d.matrices(
            "merge",
            _pad(plan.merge, [channels], -1),
            _pad(plan.merge_bias, [channels], -1),
            [channels, 2],
        )
        return
    width = attention.query_bias.shape[1]
    head_dim = width // attention.num_heads
    d.integers["attention.num_heads"] = attention.num_heads
    d.integers["attention.head_dim"] = head_dim
    d.integers["attention.inner_channels"] = _round_up(attention.key.inner_channels)
    joined, without_input = [channels, channels, 2], [channels, 2]
    d.pointwise("attention.key", attention.key, joined)
    d.pointwise("attention.query", attention.query, without_input)
    d.pointwise("attention.out", attention.out, [channels], whole=True)
    # The scale of the dot products is applied here, once.
    scale = head_dim**-0.5
    d.matrices(
        "attention.query_weight",
        _pad(attention.query_weight * scale, [width], -1),
        _pad(attention.query_bias * scale, [width], -1),
        without_input,
    )
    d.matrices(
        "attention.key_value_weight",
        _pad(attention.key_value_weight, [2 * width], -1),
        _pad(attention.key_value_bias, [2 * width], -1),
        joined,
    )


def _describe_condition(d: _Describer, plan: ConditionPlan) -> None:
    channels = plan.stem_biases[0].shape[0]
    inner = plan.layers[0][0].shape[0] if plan.layers else channels
    d.integers.update(
        {
            "condition.kernel": plan.kernel_size,
            "condition.channels": _round_up(channels),
            "condition.inner_channels": _round_up(inner),
            "condition.num_layers": len(plan.layers),
            "condition.down": plan.scale[0],
            "condition.right": plan.scale[1],
        }
    )
    for n, (table, bias) in enumerate(zip(plan.stems, plan.stem_biases, strict=True)):
        d.add(f"condition.stem{n}.table", _pad(table, [channels], -1))
        d.add(f"condition.stem{n}.bias", _pad(bias, [channels], -1))
    if not plan.layers:
        return

    weights1, biases1, weights2, biases2 = zip(*plan.layers, strict=True)
    d.centred("condition.first", weights1, biases1, gates=False)
    d.centred("condition.second", weights2, biases2, gates=True)
