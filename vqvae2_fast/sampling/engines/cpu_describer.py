"""Collects the tensors and matrices that engine `cpu` packs, padded to whole panels."""

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
from vqvae2_fast.sampling.quantized import check_terms

if TYPE_CHECKING:
    from vqvae2_fast.sampling.plan import CentredPlan, ConvPlan, GatedPlan
    from vqvae2_fast.sampling.quantized import InputRanges

__all__ = ["Describer", "pad", "pad_gates", "round_up"]

# Padding among the outputs and inputs of a `Packing`.
_ZEROS = -1


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
    """The outputs, or the values of which each has a gate."""
    return [plan.kernels[0].shape[0] // (2 if gates else 1)]


def _num_panels(outputs: list[int], gates: bool) -> int:
    return sum(map(round_up, outputs)) * (2 if gates else 1) // PANEL
