"""A plan as engine `cpu` packs it, in the layout of `csrc/cpu/sampler/plan.h`.

`described_plan` goes through a plan. A `Describer` collects the tensors that the library keeps, and
the matrices that it packs itself, padded to whole panels. The `Description` makes the packed plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.sampling.quantized import check_terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.sampling.plan import (
        CentredPlan,
        ConditionPlan,
        ConvPlan,
        GatedPlan,
        SamplingPlan,
    )
    from vqvae2_fast.sampling.quantized import InputRanges

__all__ = [
    "HALF_PANEL",
    "PANEL",
    "Block",
    "Describer",
    "Description",
    "Format",
    "Packing",
    "described_plan",
    "pad",
    "pad_gates",
    "round_up",
]

# Columns of a packed panel, and values (or gates) of a gated panel: kPanel and kHalfPanel of C++.
PANEL, HALF_PANEL = 32, 16
# Padding among the outputs and inputs of a `Packing`.
_ZEROS = -1


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


def round_up(size: int) -> int:
    return -(-size // PANEL) * PANEL


def pad(x: Tensor, parts: list[int], *, last: bool = True, value: float = 0.0) -> Tensor:
    """x with each part of its last dimension filled up to whole panels; x itself if all are whole.

    Args:
        last: Whether the last part is filled up too.
    """
    pieces = list(x.split(parts, -1))
    fills = [round_up(size) - size for size in parts[: None if last else -1]]
    if not any(fills):
        return x
    for n, fill in enumerate(fills):
        pieces[n] = F.pad(pieces[n], (0, fill), value=value)
    return torch.cat(pieces, -1)


def pad_gates(x: Tensor, parts: list[int], *, value: float = 0.0) -> Tensor:
    """`[..., 2C]`, values then gates -> `[..., 2·padded C]` in alternating half panels."""
    halves = [
        pad(half, parts, value=value).unflatten(-1, (-1, HALF_PANEL)) for half in x.chunk(2, -1)
    ]
    return torch.stack(halves, dim=-2).flatten(-3)  # [..., C/16, 2, 16] -> [..., 2C]


class Describer:
    """Collects a `Description`.

    Args:
        ranges: Of a calibration, for int8 weights and inputs; None for float32.
    """

    def __init__(self, ranges: InputRanges | None) -> None:
        self.ranges = ranges
        self.form = Format.FLOAT32 if ranges is None else Format.QUADS
        self.description = Description()
        self.integers = self.description.integers
        self.integers["format"] = self.form.value

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
        return Format.FLOAT32 if "condition" in name else self.form

    def input_scales(self, name: str, parts: list[int], *, whole: bool = True) -> Tensor | None:
        """`[n, inputs]` of int8 inputs, padded with ones as the weights are with zeros."""
        if self.form_of(name) is not Format.QUADS:
            return None
        assert self.ranges is not None
        scales = pad(self.ranges.scales(name, sum(parts)), parts, last=whole, value=1.0)
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
        inputs = pad(_numbers(num_inputs) * num_outputs, parts, last=whole, value=_ZEROS)
        form = self.form_of(name)
        words, panels = form.words(len(inputs)), num_outputs // PANEL
        self.description.sizes[f"{name}.weight"] = n * panels * words
        packing = Packing(
            name,
            form,
            weights=list(weight),
            factors=[],
            output_stride=1,
            outputs=_numbers(num_outputs),
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
        inner = [plan.inner_channels]
        if plan.auxiliary is None:
            self.pointwise_kernels(f"{name}.first", plan.conv1, parts, inner, whole=whole)
        else:
            self.matrices(
                f"{name}.first",
                pad(torch.cat([plan.conv1.current, plan.auxiliary], dim=-2), inner),
                pad(plan.conv1.bias, inner),
                [*parts, plan.auxiliary.shape[-2]],
            )
        self.pointwise_kernels(f"{name}.second", plan.conv2, inner, parts, gates=True)

    def pointwise_kernels(
        self,
        name: str,
        plan: ConvPlan,
        inputs: list[int],
        outputs: list[int],
        *,
        whole: bool = True,
        gates: bool = False,
        with_bias: bool = True,
    ) -> None:
        """Add n pointwise convolutions; arguments as in `kernels`."""
        last = round_up(inputs[-1]) if whole else inputs[-1]
        words = self.form_of(name).words(sum(map(round_up, inputs[:-1])) + last)
        panels = _num_panels(outputs, gates)
        self.description.sizes[f"{name}.weight"] = len(plan.kernels) * panels * words
        self.kernels(
            name,
            plan,
            plan.bias if with_bias else None,
            inputs,
            outputs,
            taps=[0],
            blocks=[Block(f"{name}.weight", 0, 0, 1, panels * words, words)],
            whole=whole,
            gates=gates,
        )

    def kernels(
        self,
        name: str,
        plan: ConvPlan | CentredPlan,
        bias: Tensor | None,
        inputs: list[int],
        outputs: list[int],
        *,
        taps: list[int],
        blocks: list[Block],
        whole: bool = True,
        gates: bool,
    ) -> None:
        """Add n convolutions, whose `[C_out, C_in, kh, kw]` are read where the prior has them.

        Args:
            bias: `[n, C_out]`, or None for convolutions without.
            inputs, outputs: Parts of the channels, each padded; of the outputs twice with gates.
            taps: Positions in a kernel, kh·kw, in the order of the blocks.
            whole: Whether the last part of the inputs is padded too.
        """
        num_outputs, num_inputs, height, width = plan.kernels[0].shape
        area = height * width

        def padded(x: Tensor, value: float = 0.0) -> Tensor:
            if gates:
                return pad_gates(x, outputs, value=value)
            return pad(x, outputs, value=value)

        if bias is not None:
            self.add(f"{name}.bias", padded(bias))
        packing = Packing(
            name,
            self.form_of(name),
            weights=plan.kernels,
            factors=[scale.flatten() for scale in plan.scales or ()],
            output_stride=num_inputs * area,
            outputs=padded(_numbers(num_outputs), _ZEROS),
            inputs=pad(_numbers(num_inputs) * area, inputs, last=whole, value=_ZEROS),
            taps=taps,
            blocks=blocks,
            input_scales=self.input_scales(name, inputs, whole=whole),
        )
        self.pack(packing)

    def convolutions(self, name: str, plan: ConvPlan, *, gates: bool) -> None:
        """Add n causal convolutions, their taps split into those above and in the current row."""
        width, form = plan.kernels[0].shape[-1], self.form_of(name)
        channels = _channels(plan, gates)
        n, panels = len(plan.kernels), _num_panels(channels, gates)
        rows, num_above = plan.rows_above, len(plan.above_offsets)
        columns, num_current = num_above // max(1, rows), len(plan.current_offsets)
        # [n, panels, rows above, words of a row's taps] and [n, current taps, panels, words].
        inputs = round_up(plan.in_channels)
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
            plan,
            plan.bias,
            [plan.in_channels],
            channels,
            taps=[row * width + column for row, column in plan.taps],
            blocks=blocks,
            gates=gates,
        )

    def centred(self, name: str, plan: CentredPlan, *, gates: bool) -> None:
        """Add n convolutions whose taps all lie in one matrix, in raster order."""
        _, num_inputs, height, width = plan.kernels[0].shape
        channels, area = _channels(plan, gates), height * width
        panels = _num_panels(channels, gates)
        words = self.form_of(name).words(area * round_up(num_inputs))
        self.description.sizes[f"{name}.weight"] = len(plan.kernels) * panels * words
        self.kernels(
            name,
            plan,
            torch.stack(plan.biases),
            [num_inputs],
            channels,
            taps=list(range(area)),
            blocks=[Block(f"{name}.weight", 0, 0, area, panels * words, words)],
            gates=gates,
        )


def _numbers(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64, device="cpu")


def _channels(plan: ConvPlan | CentredPlan, gates: bool) -> list[int]:
    """The number of outputs, or of the values if each of them has a gate."""
    return [plan.kernels[0].shape[0] // (2 if gates else 1)]


def _num_panels(outputs: list[int], gates: bool) -> int:
    return sum(map(round_up, outputs)) * (2 if gates else 1) // PANEL


class Format(Enum):
    """How the weights of a panel are stored: `Format` of csrc/cpu/sampler/kernels.h."""

    FLOAT32, QUADS = range(2)

    def words(self, inputs: int) -> int:
        """4-byte words of a panel of so many inputs: `panel_words` of kernels.h."""
        return inputs * PANEL if self is Format.FLOAT32 else PANEL + -(-inputs // 4) * PANEL


class Block(NamedTuple):
    """Taps that lie in panels of their own.

    Args:
        name: Of the tensor, in which the first panel begins at word `start`.
        first_tap, num_taps: Which taps.
        matrix_stride, panel_stride: Words from one matrix, and panel, to the next.
    """

    name: str
    start: int
    first_tap: int
    num_taps: int
    matrix_stride: int
    panel_stride: int


@dataclass(frozen=True, eq=False)
class Packing:
    """n matrices of one shape, or convolutions: `Packing` of csrc/cpu/sampler/pack.h.

    Args:
        name: Of the matrices in the plan.
        weights: n tensors, from which the library reads.
        factors: What to multiply their outputs with, n tensors `[outputs]`, or none.
        output_stride: Elements from an output of a weight to the next.
        outputs: The output of each column, int64 `[panels·32]`; -1 for zeros.
        inputs: How many elements each input is after the first, int64 `[inputs]`; -1 for zeros.
        taps: The same of each tap.
        blocks: Where the taps are stored.
        input_scales: Factors of the inputs, `[n, inputs]`, or None.
    """

    name: str
    form: Format
    weights: Sequence[Tensor]
    factors: Sequence[Tensor]
    output_stride: int
    outputs: Tensor
    inputs: Tensor
    taps: list[int]
    blocks: list[Block]
    input_scales: Tensor | None = None

    @property
    def scales(self) -> str:
        """Name of the tensor of the outputs' scales, empty for none."""
        return f"{self.name}.scale" if self.form is Format.QUADS else ""

    def write(self, made: Any, threads: int) -> None:
        """Write into the memory of a `SamplerPlan` of the compiled module, which holds zeros."""
        weights, factors = ([_readable(x) for x in xs] for xs in (self.weights, self.factors))
        input_scales = None if self.input_scales is None else _readable(self.input_scales)
        made.pack(
            format=self.form.value,
            weights=weights,
            factors=factors,
            output_stride=self.output_stride,
            outputs=self.outputs.tolist(),
            inputs=self.inputs.tolist(),
            taps=self.taps,
            input_scales=input_scales,
            scales=self.scales,
            blocks=self.blocks,
            threads=threads,
        )


def _readable(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()


@dataclass(frozen=True, eq=False)
class Description:
    """A plan by the names under which `plan.cpp` reads it.

    Args:
        integers: Sizes and positions.
        sizes: Words of each tensor that the library keeps.
        tensors: Those that it keeps as they are.
        packings: What writes the others.
    """

    integers: dict[str, int | list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    packings: list[Packing] = field(default_factory=list)

    def packed(self, module: Any, threads: int) -> Any:
        """A `SamplerPlan` of the compiled module, packed."""
        made = module.SamplerPlan(
            integers={n: [v] if isinstance(v, int) else v for n, v in self.integers.items()},
            sizes=self.sizes,
            threads=threads,
        )
        for name, tensor in self.tensors.items():
            if tensor.numel():
                memory = torch.frombuffer(made.memory(name), dtype=torch.float32)
                memory.view(tensor.shape).copy_(tensor)
        for packing in self.packings:
            packing.write(made, threads)
        return made
