"""Weights and scales of engine `cuda_w8a8` in the layouts of `csrc/cuda/sampler`.

`int8.cuh` reads them in the pixel phase, `row_phase_int8.cuh` in the row phase. `quantized.py` says
what is rounded, and how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.sampling.quantized import quantized

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.sampling.plan import ConvPlan
    from vqvae2_fast.sampling.quantized import InputRanges

__all__ = ["Int8Form"]

# kLanes, kGroup and kByteGroup of program.h.
LANES, GROUP, BYTE_GROUP = 32, 4, 16


class Int8Form:
    """How `pack` lays out the matrices of a calibrated prior.

    Args:
        ranges: Of its calibration.
    """

    def __init__(self, ranges: InputRanges) -> None:
        self._ranges = ranges

    def matrices(self, name: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """weight `[n, inputs, outputs]`, bias `[n, outputs]`, in whole units."""
        scales = self._scales(name, weight.shape[1], weight.device)
        integers, by_output = quantized(weight * scales[..., None])
        initial = torch.stack([torch.zeros_like(bias), bias]).unflatten(-1, (-1, 2))
        return _pixel_tensors(name, integers, scales, by_output) | {
            # Of each unit its sums, which are none, and what they are added to.
            f"{name}.bias": initial.permute(1, 2, 0, 3).flatten(1),
        }

    def convolution(
        self, name: str, conv: ConvPlan, order: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The convolutions of all layers.

        Args:
            order: Puts outputs, the last dimension, into units.
        """
        above, taps = len(conv.above_offsets), len(conv.above_offsets) + len(conv.current_offsets)
        weight = order(torch.cat([conv.above, conv.current], 1))
        scales = self._scales(name, conv.in_channels, weight.device)
        integers, by_output = quantized(weight * scales.repeat(1, taps)[..., None])
        fill = -conv.in_channels % BYTE_GROUP
        by_tap = F.pad(integers.unflatten(1, (taps, conv.in_channels)), (0, 0, 0, fill))
        scales = F.pad(scales, (0, fill), value=1.0)
        rows = conv.rows_above
        of_rows = by_tap[:, :above].unflatten(1, (rows, above // max(rows, 1))).flatten(2, 3)
        current = by_tap[:, above:].flatten(1, 2)
        return _pixel_tensors(name, current, scales.repeat(1, taps - above), by_output) | {
            f"{name}.above": of_rows.transpose(-1, -2),  # [n, rows, outputs, inputs]
            f"{name}.bias": order(conv.bias),
            f"{name}.input_scales": scales,
        }

    def _scales(self, name: str, inputs: int, device: torch.device) -> Tensor:
        known = name if name in self._ranges.largest else f"attention.{name}"
        return self._ranges.scales(known, inputs).to(device)


def _pixel_tensors(
    name: str, integers: Tensor, scales: Tensor, by_output: Tensor
) -> dict[str, Tensor]:
    """integers int8 `[n, inputs, outputs]`, scales `[n, inputs]`, by_output `[n, outputs]`."""
    fill = -scales.shape[-1] % LANES
    padded = F.pad(integers, (0, 0, 0, fill)).transpose(1, 2)
    outputs = F.pad(by_output, (0, -by_output.shape[-1] % GROUP), value=1.0)
    return {
        f"{name}.weight": padded,  # [n, outputs, padded inputs]: a unit is two outputs
        f"{name}.scales": torch.cat([F.pad(scales, (0, fill), value=1.0), outputs], 1),
    }
