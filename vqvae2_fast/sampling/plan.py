"""The sampling plan of a prior: what an engine needs to draw from it, as plain data.

A plan holds weights (with what weight normalisation and masks make of them), tap positions and
sizes. It does not refer to the module that it came from, but some of its tensors may be the prior's
own memory, so engines make it of a copy of the prior (`prior.made_from`). Every engine except
`reference` needs only the plan, so all of them can draw from any prior that can be written as a
plan.

The network
-----------
Position p = (i, j) of an H×W map, raster order. All activations are channel vectors.

    x  = stem.bias[i, j] + Σ_t stem.above[t, code at (i, j) + stem.above_offsets[t]]
                         + Σ_t stem.left[t, code at (i, j + stem.left_offsets[t])]
         (a code outside the map adds nothing)
    per block b:
        y = x;  for each of its layers l:  y = gated(layers, l, y)
        without attention:  x = merge(b, [y, background[i, j]])
        with attention:
            kx = gated(attention.key, b, [x, y, background[i, j]])
            qx = gated(attention.query, b, [y, background[i, j]])
            q = query(b, qx);  (k, v) = halves of key_value(b, kx), cached at p
            a = per head, softmax over positions < p of q·k / √d, applied to v; zeros at p = 0
            x = gated(attention.out, b, y, auxiliary a)
    x = gated(output_layers, m, x) for each m
    logits = head(ELU(x))

    gated(g, n, x, a) = x + first half × sigmoid(second half) of
        g.conv2[n](ELU(g.conv1[n](ELU(x)) + ELU(a) @ g.auxiliary[n]))
        + condition features at (i, j) // condition.scale @ g.condition.current[n]
        + g.classes[n, label]

Layers of one kind have one shape in every prior, so their weights are stacked: the leading size n
of a tensor counts layers (or blocks) in the order of the network. Matrices are `[inputs, outputs]`.

The split
---------
`ConvPlan` separates taps by when their inputs are known. *Above* taps read rows < i: when row i
begins, one matrix product gives their part of a whole row of outputs (row phase). *Current* taps
read row i up to j and are left for each position (pixel phase). `reads_itself` says whether a
current tap reads j: if no layer's does, all layers' convolutions at a position can run at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.ops import live_taps

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AttentionPlan",
    "CentredPlan",
    "ConditionPlan",
    "ConvPlan",
    "GatedPlan",
    "SamplingPlan",
    "StemPlan",
    "conv_plan",
    "stem_plan",
]


@dataclass(frozen=True)
class StemPlan:
    """Gathered columns of the convolutions over one-hot codes.

    Args:
        above_offsets: (row, column) of each tap in rows above, row < 0.
        above: `[len(above_offsets), K, C]`.
        left_offsets: Column of each tap in the current row: -n, …, -1 without gaps.
        left: `[len(left_offsets), K, C]`.
        bias: `[H, W, C]`.
    """

    above_offsets: tuple[tuple[int, int], ...]
    above: Tensor
    left_offsets: tuple[int, ...]
    left: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class ConvPlan:
    """n causal convolutions of one shape, taps split into above and current.

    Args:
        kernels: n weights `[C_out, C_in, kh, kw]`, the prior's own memory; dead taps are ignored.
        scales: What to multiply each with, `[C_out, 1, 1, 1]`; None for nothing.
        bias: `[n, C_out]`.
        above_offsets: (row, column) of each tap, row < 0: all pairs of `rows` × `columns` in raster
            order, rows -A, …, -1 and columns without gaps. Empty for a pointwise layer.
        current_offsets: Column of each tap in row i, ascending without gaps, last -1 or 0.
            Empty for mask `down`; (0,) for a pointwise layer.
        taps: (row, column) in the kernels of each tap, those above first.
    """

    kernels: tuple[Tensor, ...]
    scales: tuple[Tensor, ...] | None
    bias: Tensor
    above_offsets: tuple[tuple[int, int], ...]
    current_offsets: tuple[int, ...]
    taps: tuple[tuple[int, int], ...]

    @property
    def rows_above(self) -> int:
        return -min((row for row, _ in self.above_offsets), default=0)

    @property
    def columns(self) -> tuple[int, int]:
        """Smallest and largest column offset of all taps."""
        offsets = [column for _, column in self.above_offsets] + list(self.current_offsets)
        return min(offsets), max(offsets)

    @property
    def reads_itself(self) -> bool:
        return 0 in self.current_offsets

    @property
    def in_channels(self) -> int:
        return self.kernels[0].shape[1]

    @cached_property
    def above(self) -> Tensor:
        """`[n, len(above_offsets)·C_in, C_out]`; input index = tap·C_in + channel."""
        return self._stacked(self.taps[: len(self.above_offsets)])

    @cached_property
    def current(self) -> Tensor:
        """`[n, len(current_offsets)·C_in, C_out]`."""
        return self._stacked(self.taps[len(self.above_offsets) :])

    def _stacked(self, taps: Sequence[tuple[int, int]]) -> Tensor:
        with torch.inference_mode():
            layers = []
            for n, kernel in enumerate(self.kernels):
                columns = [kernel[:, :, row, column] for row, column in taps]
                if self.scales is not None:
                    columns = [column * self.scales[n].flatten(1) for column in columns]
                empty = kernel.new_empty(0, kernel.shape[0])
                layers.append(torch.cat([empty, *(c.t() for c in columns)]))  # [taps·C_in, C_out]
            return torch.stack(layers)


@dataclass(frozen=True)
class GatedPlan:
    """n gated residual layers of one shape.

    Args:
        conv1, conv2: C → R and R → 2C; both causal with the same taps, or both pointwise.
        auxiliary: `[n, C_aux, R]` or None; its bias is in `conv1.bias`.
        condition: Pointwise, C_condition → 2C, its biases zero; or None.
        classes: `[n, num_labels, 2C]` or None.
    """

    conv1: ConvPlan
    conv2: ConvPlan
    auxiliary: Tensor | None = None
    condition: ConvPlan | None = None
    classes: Tensor | None = None

    @property
    def num_layers(self) -> int:
        return self.conv1.bias.shape[0]

    @property
    def channels(self) -> int:
        return self.conv2.bias.shape[1] // 2

    @property
    def inner_channels(self) -> int:
        return self.conv1.bias.shape[1]


@dataclass(frozen=True)
class AttentionPlan:
    """The attention part of each block; n counts blocks, A channels of the attention.

    Args:
        key, query: Pointwise, 2C + 2 and C + 2 channels.
        query_weight, query_bias: `[n, C + 2, A]`, `[n, A]`.
        key_value_weight, key_value_bias: `[n, 2C + 2, 2A]`, `[n, 2A]`; keys first. Channels of one
            head are adjacent: head·d + channel.
        out: Pointwise, C channels, auxiliary of A.
    """

    num_heads: int
    key: GatedPlan
    query: GatedPlan
    query_weight: Tensor
    query_bias: Tensor
    key_value_weight: Tensor
    key_value_bias: Tensor
    out: GatedPlan


@dataclass(frozen=True, eq=False)
class CentredPlan:
    """n convolutions of one shape that are not causal.

    Args:
        kernels: n weights `[C_out, C_in, q, q]`, the prior's own memory.
        scales: What to multiply each with, `[C_out, 1, 1, 1]`; None for nothing.
        biases: n `[C_out]`.
    """

    kernels: tuple[Tensor, ...]
    scales: tuple[Tensor, ...] | None
    biases: tuple[Tensor, ...]

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """The kernels, scaled. Not for engine `cpu`, which scales them as it packs them."""
        if self.scales is None:
            return self.kernels
        with torch.inference_mode():
            return tuple(v * scale for v, scale in zip(self.kernels, self.scales, strict=True))


@dataclass(frozen=True)
class ConditionPlan:
    """The conditioning stack. It is not causal and runs once per draw: see `condition_features`.

    Args:
        sizes: Sizes of the maps, coarse to fine.
        scale: (rows, columns) of the code map per row and column of the features.
        stems: One table `[q·q, K, C]` per map: the taps of a centred kernel in raster order.
        stem_biases: One `[C]` per map.
        kernel_size: q.
        conv1, conv2: Of its gated residual layers, C → R and R → 2C.
    """

    sizes: tuple[tuple[int, int], ...]
    scale: tuple[int, int]
    kernel_size: int
    stems: tuple[Tensor, ...]
    stem_biases: tuple[Tensor, ...]
    conv1: CentredPlan
    conv2: CentredPlan

    @property
    def num_layers(self) -> int:
        return len(self.conv1.kernels)


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """A prior as data; the head of this file defines the network that it describes.

    Args:
        size: (H, W) of the code map.
        num_embeddings: K.
        num_classes: 0 for none; label `num_classes` is "no class".
        layers: All causal gated layers: the `layers_per_block` layers of the first block, and so
            on.
        background: `[H, W, 2]`.
        attention: Or None, and then `merge`: `[blocks, C + 2, C]` and `merge_bias` `[blocks, C]`.
        output_layers: Pointwise, or None.
        head: `[C, K]`; head_bias `[K]`.
        condition: Or None.
    """

    size: tuple[int, int]
    num_embeddings: int
    num_classes: int
    stem: StemPlan
    layers: GatedPlan
    layers_per_block: int
    background: Tensor
    attention: AttentionPlan | None
    merge: Tensor | None
    merge_bias: Tensor | None
    output_layers: GatedPlan | None
    head: Tensor
    head_bias: Tensor
    condition: ConditionPlan | None

    @property
    def num_labels(self) -> int:
        """Labels that the prior takes, 0 without classes."""
        return 0 if self.layers.classes is None else self.layers.classes.shape[1]

    @property
    def num_blocks(self) -> int:
        return self.layers.num_layers // self.layers_per_block

    @property
    def channels(self) -> int:
        return self.layers.channels

    @property
    def condition_sizes(self) -> tuple[tuple[int, int], ...]:
        return () if self.condition is None else self.condition.sizes

    @property
    def device(self) -> torch.device:
        return self.head.device


def conv_plan(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    mask: str | None = None,
    scales: Sequence[Tensor] | None = None,
) -> ConvPlan:
    """Convolutions of one shape, their taps split.

    Args:
        weights: Each `[C_out, C_in, kh, kw]`; dead taps are ignored. They are kept, not copied.
        biases: Each `[C_out]`; None for zeros.
        mask: As in `ops.causal_conv2d`; None for pointwise layers, kh = kw = 1.
        scales: Factors of the weights, each `[C_out, 1, 1, 1]`, for weights that are not folded.

    Raises:
        ValueError: Weights that are not 1×1 without a mask, or scales of other weights.
    """
    height, width = weights[0].shape[2:]
    if mask is None and (height, width) != (1, 1):
        raise ValueError(f"without a mask expected 1×1 weights, got {height}×{width}.")
    if scales is not None and len(scales) != len(weights):
        raise ValueError(f"expected a scale for each of {len(weights)} weights, got {len(scales)}.")
    taps = [(0, 0, 0, 0)] if mask is None else live_taps(mask, height, width)
    if biases is None:
        bias = weights[0].new_zeros(1, weights[0].shape[0]).expand(len(weights), -1)
    else:
        bias = torch.stack(list(biases))
    above = [tap for tap in taps if tap[0] < 0]
    current = [tap for tap in taps if tap[0] == 0]
    return ConvPlan(
        kernels=tuple(weight.detach() for weight in weights),
        scales=None if scales is None else tuple(scales),
        bias=bias,
        above_offsets=tuple((row, column) for row, column, _, _ in above),
        current_offsets=tuple(column for _, column, _, _ in current),
        taps=tuple((row, column) for _, _, row, column in above + current),
    )


def stem_plan(taps: Sequence[tuple[tuple[int, int], Tensor]], bias: Tensor) -> StemPlan:
    """Gather the taps of the stem's branches; taps at the same offset are added.

    Args:
        taps: ((row, column), `[K, C]`) each, all before the position in raster order.
        bias: `[H, W, C]`.
    """
    table: dict[tuple[int, int], Tensor] = {}
    for offset, columns in taps:
        table[offset] = table[offset] + columns if offset in table else columns
    above = sorted(offset for offset in table if offset[0] < 0)
    left = sorted(column for row, column in table if row == 0)
    if left != list(range(-len(left), 0)) or len(above) + len(left) != len(table):
        raise ValueError(
            "expected taps in rows above, and in the current row at columns -n..-1, "
            f"got {sorted(table)}."
        )
    empty = bias.new_empty(0, *taps[0][1].shape)
    return StemPlan(
        above_offsets=tuple(above),
        above=torch.stack([table[offset] for offset in above]) if above else empty,
        left_offsets=tuple(left),
        left=torch.stack([table[0, column] for column in left]) if left else empty,
        bias=bias,
    )
