"""Packs a plan for engine `cpu`, in the layout of `csrc/cpu/sampler/plan.h`."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.sampling.quantized import InputRanges, quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.sampling.plan import ConditionPlan, ConvPlan, GatedPlan, SamplingPlan

    # A dtype to which matrices are rounded, or what the rounding of inputs to int8 needs to know.
    Weights = torch.dtype | InputRanges

__all__ = ["HALF_PANEL", "PANEL", "Written", "described_plan"]

# Columns of a packed panel, and values (or gates) of a gated panel: kPanel and kHalfPanel of C++.
PANEL, HALF_PANEL = 32, 16


class Format(Enum):
    """How the weights of a panel are stored: `Format` of csrc/cpu/sampler/kernels.h."""

    FLOAT32, BFLOAT16, INT8, QUADS = range(4)


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


def _pad_gates(x: Tensor, parts: list[int]) -> Tensor:
    """`[..., 2C]`, values then gates -> `[..., 2·padded C]` in alternating half panels."""
    halves = [_pad(half, parts, -1).unflatten(-1, (-1, HALF_PANEL)) for half in x.chunk(2, -1)]
    return torch.stack(halves, dim=-2).flatten(-3)  # [..., C/16, 2, 16] -> [..., 2C]


def stored(panels: Tensor, form: Format) -> Tensor:
    """Panels `[..., inputs, 32]` as words of 4 bytes, `[..., words]`: see `Format` of kernels.h.

    Args:
        panels: int8 for the forms of int8.
    """
    if form is Format.FLOAT32:
        return panels.flatten(-2)
    if form is Format.INT8:
        return panels.contiguous().view(torch.float32).flatten(-2)
    if form is Format.BFLOAT16:
        # Column i in the low half of word i, column i + 16 in its high half.
        halves = panels.bfloat16().unflatten(-1, (2, HALF_PANEL)).transpose(-1, -2).flatten(-2)
        return halves.view(torch.float32).flatten(-2)
    sums = panels.sum(-2, dtype=torch.int32) * -128  # [..., 32]
    fours = F.pad(panels, (0, 0, 0, -panels.shape[-2] % 4)).unflatten(-2, (-1, 4)).mT
    words = fours.flatten(-3).view(torch.float32)
    return torch.cat([sums.view(torch.float32), words], dim=-1)


class Written:
    """A tensor that the library keeps: its size in words, and what writes it there, in any order.

    Large ones are never made as a whole elsewhere: their parts are written one by one.
    """

    def __init__(self, size: int, write: Callable[[Tensor], object]) -> None:
        self.size, self.write = size, write

    @staticmethod
    def of(tensor: Tensor) -> Written:
        return Written(tensor.numel(), lambda to: to.view(tensor.shape).copy_(tensor))


class _Description:
    """Collects the integers and tensors that `plan.cpp` reads by name."""

    def __init__(self, weights: Weights) -> None:
        self.ranges = weights if isinstance(weights, InputRanges) else None
        self.form = _FORMATS[weights] if isinstance(weights, torch.dtype) else Format.QUADS
        self.form_of_condition = Format.FLOAT32 if self.form is Format.QUADS else self.form
        self.integers: dict[str, int | list[int]] = {
            "format": self.form.value,
            "condition.format": self.form_of_condition.value,
        }
        self.tensors: dict[str, Written] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = Written.of(tensor.detach())

    def input_scales(self, name: str, parts: list[int], *, whole: bool = True) -> Tensor:
        """`[n, inputs]` of int8 inputs, padded with ones as the weights are with zeros."""
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
        weight = _pad(weight, parts, -2, last=whole)
        form = self.form_of_condition if "condition" in name else self.form
        if form is Format.INT8:
            weight, scale = quantized(weight)
            self.add(f"{name}.scale", scale)
        if form is Format.QUADS:
            scales = self.input_scales(name, parts, whole=whole)
            weight, scale = quantized(weight * scales[..., None])
            self.add(f"{name}.scale", scale)
        panels = weight.unflatten(-1, (-1, PANEL)).transpose(-3, -2)  # [n, panels, inputs, 32]
        self.add(f"{name}.weight", stored(panels, form))
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

    def convolutions(self, name: str, plan: ConvPlan, *, gates: bool) -> None:
        packed = _PackedConvolutions(plan, halves=2 if gates else 1)
        own = [packed.outputs]
        self.add(f"{name}.bias", _pad_gates(plan.bias, own) if gates else _pad(plan.bias, own, -1))
        rows, columns = plan.rows_above, len(plan.above_offsets) // max(1, plan.rows_above)
        n, panels, inputs = len(plan.kernels), packed.panels, packed.inputs
        num_above, num_current = rows * columns, len(plan.current_offsets)
        if self.form is Format.FLOAT32:

            def write_above(to: Tensor) -> None:
                for layer, own in enumerate(to.view(n, panels, num_above, inputs, PANEL)):
                    packed.write(layer, plan.taps[:num_above], own.unbind(1))

            def write_current(to: Tensor) -> None:
                for layer, own in enumerate(to.view(n, num_current, panels, inputs, PANEL)):
                    packed.write(layer, plan.taps[num_above:], own.unbind(0))

            size = n * panels * inputs * PANEL
            self.tensors[f"{name}.above"] = Written(size * num_above, write_above)
            self.tensors[f"{name}.current"] = Written(size * num_current, write_current)
            return
        above, current, scales, input_scales = [], [], [], None
        if self.form is Format.QUADS:
            input_scales = self.input_scales(name, [plan.in_channels])
        for layer in range(n):
            weight = torch.zeros(panels, num_above + num_current, inputs, PANEL)
            packed.write(layer, plan.taps, weight.unbind(1))
            if input_scales is not None:
                weight *= input_scales[layer, :, None]
            if self.form is not Format.BFLOAT16:
                weight, scale = quantized(weight.flatten(1, 2))  # scale [panels, 32]
                scales.append(scale.flatten())
                weight = weight.unflatten(1, (-1, inputs))
            rows_of = weight[:, :num_above].unflatten(1, (rows, columns)) if rows else weight[:, :0]
            above.append(stored(rows_of.flatten(2, -2), self.form))  # [panels, rows, words]
            current.append(stored(weight[:, num_above:].transpose(0, 1), self.form))
        self.add(f"{name}.above", torch.stack(above))
        self.add(f"{name}.current", torch.stack(current))
        if scales:
            self.add(f"{name}.scale", torch.stack(scales))


class _PackedConvolutions:
    """Writes the weights of n convolutions tap by tap, straight from the prior's own tensors.

    Args:
        halves: 2 for values and gates, which alternate in half panels, or 1.
    """

    def __init__(self, plan: ConvPlan, halves: int) -> None:
        self.plan, self.halves = plan, halves
        self.outputs = plan.kernels[0].shape[0] // halves  # of a half
        self.panels = _round_up(self.outputs) * halves // PANEL
        self.inputs = _round_up(plan.in_channels)

    def write(self, layer: int, taps: Sequence[tuple[int, int]], targets: Sequence[Tensor]) -> None:
        """Write a layer's taps, each to a target `[panels, inputs, 32]` that holds zeros."""
        weight = self._by_panel(self.plan.kernels[layer])  # [halves, panels, width, C_in, kh, kw]
        scale = None
        if self.plan.scales is not None:
            scale = self._by_panel(self.plan.scales[layer].flatten())[:, :, None]
        for (row, column), target in zip(taps, targets, strict=True):
            own = target[:, : self.plan.in_channels].chunk(self.halves, -1)
            for half, to in enumerate(own):  # [panels, C_in, width]; one call is slow for both
                tap = weight[half, ..., row, column].transpose(1, 2)
                if scale is None:
                    to.copy_(tap)
                else:
                    torch.mul(tap, scale[half], out=to)

    def _by_panel(self, x: Tensor) -> Tensor:
        """`[C_out, ...]` -> `[halves, panels, width, ...]`, padded with zeros."""
        x = x.unflatten(0, (self.halves, self.outputs))
        fill = _round_up(self.outputs) - self.outputs
        if fill:
            x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, fill])
        return x.unflatten(1, (self.panels, PANEL // self.halves))


def described_plan(
    plan: SamplingPlan, weights: Weights = torch.float32
) -> tuple[dict[str, int | list[int]], dict[str, Written]]:
    """The integers and tensors of a plan as `csrc/cpu/sampler/plan.cpp` reads them by name."""
    d = _Description(weights)
    channels, layers = plan.channels, plan.layers
    inner = layers.inner_channels
    height, width = plan.size
    d.integers.update(
        height=height,
        width=width,
        num_embeddings=plan.num_embeddings,
        num_classes=plan.num_classes,
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
    return d.integers, d.tensors


def _describe_stem(d: _Description, plan: SamplingPlan) -> None:
    stem, channels = plan.stem, plan.channels
    d.integers["stem.above_offsets"] = [step for offset in stem.above_offsets for step in offset]
    d.integers["stem.num_left"] = len(stem.left_offsets)
    for name, table in (("above", stem.above), ("left", stem.left), ("bias", stem.bias)):
        d.add(f"stem.{name}", _pad(table, [channels], -1))


def _describe_attention(d: _Description, plan: SamplingPlan) -> None:
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


def _describe_condition(d: _Description, plan: ConditionPlan) -> None:
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

    def by_tap(weights: list[Tensor], in_channels: int) -> Tensor:
        taps = torch.stack(weights).flatten(3).permute(0, 3, 2, 1)  # [n, q·q, C_in, C_out]
        return _pad(taps, [in_channels], -2).flatten(1, 2)

    weights1, biases1, weights2, biases2 = (
        list(column) for column in zip(*plan.layers, strict=True)
    )
    area = plan.kernel_size**2
    d.matrices(
        "condition.first",
        _pad(by_tap(weights1, channels), [inner], -1),
        _pad(torch.stack(biases1), [inner], -1),
        [area * _round_up(channels)],
    )
    d.matrices(
        "condition.second",
        _pad_gates(by_tap(weights2, inner), [channels]),
        _pad_gates(torch.stack(biases2), [channels]),
        [area * _round_up(inner)],
    )
