"""What the compiled library packs, in PyTorch: the definition of `Packing` that it is tested by."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.sampling.engines.cpu_pack import PANEL, Format
from vqvae2_fast.sampling.quantized import quantized

if TYPE_CHECKING:
    from vqvae2_fast.sampling.engines.cpu_pack import Packing

__all__ = ["packed_words", "panels_of", "with_panels"]


def panels_of(packing: Packing) -> Tensor:
    """The float32 matrices of a packing as panels, `[n, panels, taps, inputs, 32]`."""
    outputs, inputs = packing.outputs.view(-1, 1, 1, PANEL), packing.inputs.view(-1, 1)
    taps = torch.tensor(packing.taps).view(-1, 1, 1)
    live = (outputs >= 0) & (inputs >= 0) & (taps >= 0)
    places = (outputs * packing.output_stride + taps + inputs).where(live, 0)
    panels = torch.stack([weight.detach().flatten()[places] for weight in packing.weights])
    if packing.factors:
        panels = panels * torch.stack([f[outputs.clamp(min=0)] for f in packing.factors])
    return panels.where(live, 0.0)


def with_panels(packing: Packing, panels: Tensor) -> Packing:
    """A packing of other matrices, `[n, panels, taps, inputs, 32]`, to the same places."""
    n, count, taps, inputs, _ = panels.shape
    outputs = count * PANEL
    return replace(
        packing,
        weights=list(panels.permute(0, 2, 3, 1, 4).reshape(n, -1, outputs)),
        factors=[],
        output_stride=1,
        outputs=torch.arange(outputs),
        inputs=torch.arange(inputs) * outputs,
        taps=[tap * inputs * outputs for tap in range(taps)],
    )


def packed_words(packing: Packing) -> dict[str, dict[int, Tensor]]:
    """The words that a packing writes: by tensor and place of their first, int32 `[words]`."""
    panels = panels_of(packing)
    words: dict[str, dict[int, Tensor]] = defaultdict(dict)
    if packing.input_scales is not None:
        panels = panels * packing.input_scales[:, None, None, :, None]
    if packing.scales:
        n, count, taps, inputs, _ = panels.shape
        integers, scales = quantized(panels.flatten(0, 1).flatten(1, 2))
        panels = integers.view(n, count, taps, inputs, PANEL)
        words[packing.scales][0] = scales.flatten().view(torch.int32)
    for block in packing.blocks:
        own = panels[:, :, block.first_tap : block.first_tap + block.num_taps].flatten(2, 3)
        for matrix, of_matrix in enumerate(_stored(own, packing.form)):
            for panel, of_panel in enumerate(of_matrix):
                place = block.start + matrix * block.matrix_stride + panel * block.panel_stride
                words[block.name][place] = of_panel.contiguous().view(torch.int32)
    return words


def _stored(panels: Tensor, form: Format) -> Tensor:
    """Panels `[..., inputs, 32]` as words of 4 bytes, `[..., words]`: see `Format` of kernels.h.

    Args:
        panels: int8 for `Format.QUADS`.
    """
    if form is Format.FLOAT32:
        return panels.flatten(-2)
    sums = panels.sum(-2, dtype=torch.int32) * -128  # [..., 32]
    fours = F.pad(panels, (0, 0, 0, -panels.shape[-2] % 4)).unflatten(-2, (-1, 4)).mT
    words = fours.flatten(-3).view(torch.float32)
    return torch.cat([sums.view(torch.float32), words], dim=-1)
