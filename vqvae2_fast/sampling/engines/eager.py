"""Engine `eager`: the two phases as PyTorch calls that need only a plan.

Row phase, when row i begins: the taps above of every convolution, one matrix product each for the
whole row. Pixel phase, W times: the current taps, the pointwise layers, one row of attention.
Everything that does not depend on the codes of this map is computed once.

Buffers are allocated at the start. The pixel phase of a row, including the draws, is one list of
calls on these buffers, the same in every row.

Sizes: B samples; N = B, or 2B under guidance (rows with the class, then rows without).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.modules.summed_labels import no_class_like
from vqvae2_fast.ops.code_conv2d.op import gather_columns, with_outside
from vqvae2_fast.sampling.bounds import check_logits, outside
from vqvae2_fast.sampling.condition import condition_features
from vqvae2_fast.sampling.engines.eager_layers import (
    AttentionCache,
    CausalLayers,
    PointwiseLayer,
    Positions,
    elu,
    linear,
)
from vqvae2_fast.sampling.request import Drawn, beyond, log_prob_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqvae2_fast.sampling.engines.eager_layers import Step
    from vqvae2_fast.sampling.plan import SamplingPlan, StemPlan
    from vqvae2_fast.sampling.request import DrawRequest

    Inputs = Iterator[tuple[str, int, Tensor]]

__all__ = ["draw_eager"]


@torch.inference_mode()
def draw_eager(
    plan: SamplingPlan,
    request: DrawRequest,
    see: Callable[[str, int, Tensor], None] | None = None,
) -> Drawn:
    """Draw a map.

    Args:
        see: Called after each row with what the plan's matrices were given in it: the name of a
            matrix, which of its kind it is, and `[..., taps, inputs]`.
    """
    network, batch = _Network(plan, request), request.batch_size
    height, width = plan.size
    codes = torch.zeros(batch, height, width, dtype=torch.int64, device=plan.device)
    log_prob = torch.zeros(batch, height, width, dtype=torch.float32, device=plan.device)
    too_large = torch.zeros((), dtype=torch.bool, device=plan.device)
    logits_map = None
    if request.want_logits:
        sizes = (batch, plan.num_embeddings, height, width)
        logits_map = torch.zeros(sizes, dtype=torch.float32, device=plan.device)
    for i in range(height):
        network.start_row(i)
        network.draw_row()
        too_large |= network.outside(i)
        if see is not None:
            for name, n, x in network.inputs():
                see(name, n, x)
        network.finish_row(i)
        codes[:, i] = network.codes.t()
        too_large |= beyond(network.logits, request.settings)
        raw = network.logits[:, :batch]  # [W, B, K]
        if request.want_log_prob:
            log_prob[:, i] = log_prob_of(raw, network.codes).t()
        if logits_map is not None:
            logits_map[:, :, i] = raw.permute(1, 2, 0)
        request.row_done(codes, i + 1)
    check_logits(too_large, request.settings)
    return Drawn(codes, log_prob if request.want_log_prob else None, logits_map)


class _Network:
    """The network of a plan on one row of the map.

    logits: `[W, N, K]` of the row; codes: int64 `[W, B]` of the row.
    """

    def __init__(self, plan: SamplingPlan, request: DrawRequest) -> None:
        self.plan, self._request = plan, request
        height, width = plan.size
        batch, groups = request.batch_size, 2 if request.settings.guided else 1
        rows, channels = batch * groups, plan.channels
        new, labels = plan.head.new_zeros, request.labels
        if labels is not None and request.settings.guided:
            labels = torch.cat([labels, no_class_like(labels, plan.num_classes)])
        self.stem = _Stem(plan.stem, batch, plan.size)
        self.layers = CausalLayers(plan.layers, plan.layers_per_block, rows, width, labels)
        self.positions = Positions(height * width, plan.head)
        self.attention: list[AttentionCache] = []
        if (attention := plan.attention) is not None:
            blocks = range(plan.num_blocks)
            self.attention = [
                AttentionCache(attention, n, rows, width, self.positions) for n in blocks
            ]
        self.output_layers: list[PointwiseLayer] = []
        if (layers := plan.output_layers) is not None:
            self.output_layers = [
                PointwiseLayer(layers, n, rows, width) for n in range(layers.num_layers)
            ]
        self._background = new(width, rows, 2)
        self._merged = new(plan.num_blocks, width, channels)
        # What the matrices after the layers are given, for the check at the row's end.
        self._to_merge = new(0 if plan.merge is None else plan.num_blocks, width, rows, channels)
        self._last, self._activated = new(rows, channels), new(width, rows, channels)
        self.logits = new(width, rows, plan.num_embeddings)
        self.codes = torch.zeros(width, batch, dtype=torch.int64, device=plan.device)
        self._features: Tensor | None = None  # [B, h, w, C_cond]
        if plan.condition is not None:
            self._features = condition_features(plan.condition, request.maps)
        self._condition: Tensor | None = None
        self._noise = torch.zeros(
            width, batch, plan.num_embeddings, dtype=torch.float32, device=plan.device
        )
        self._known = torch.zeros_like(self.codes)
        self._steps = [self._column_steps(j, groups) for j in range(width)]

    def start_row(self, i: int) -> None:
        request = self._request
        self.stem.start_row(i)
        self._start_condition(i)
        self.layers.start_row(self._condition)
        self.positions.reach = (i + 1) * self.plan.size[1]
        for attention in self.attention:
            attention.look_back()
        self._noise.copy_(request.noise.row(i).transpose(0, 1))
        if request.known is not None:
            self._known.copy_(request.known[:, i].t())
        background = self.plan.background[i]  # [W, 2]
        self._background.copy_(background[:, None])
        if self.plan.merge is not None and self.plan.merge_bias is not None:
            # The part of the layer that sees only the coordinates: [blocks, W, C].
            of_background = self.plan.merge[:, self.plan.channels :]
            torch.add(background @ of_background, self.plan.merge_bias[:, None], out=self._merged)

    def _start_condition(self, i: int) -> None:
        """Compute what the condition adds to each layer's gate in row i."""
        condition, convolutions = self.plan.condition, self.plan.layers.condition
        if self._features is None or condition is None or convolutions is None:
            return
        down = condition.scale[0]
        if i % down == 0:
            row = self._features[:, i // down].flatten(0, 1)  # [B·w, C_cond]
            added = row @ convolutions.current  # [n, B·w, 2C]
            self._condition = added.unflatten(1, (self._features.shape[0], -1))

    def outside(self, i: int) -> Tensor:
        """Whether row i multiplied an activation beyond `SAMPLING_BOUND`: a bool on the device.

        Called before `finish_row`. The features of the condition are NaN there already.
        """
        found = [self.layers.outside(), outside(self._activated), outside(self._to_merge)]
        found += [outside(attention.keys_of_row(i)) for attention in self.attention]
        layers = [part for a in self.attention for part in (a.key, a.query, a.out)]
        for layer in (*layers, *self.output_layers):
            found += map(outside, layer.inputs_of_row())
        return torch.stack(found).any()

    def inputs(self) -> Inputs:
        """What the plan's matrices were given in the row, for `see` of `draw_eager`, before
        `finish_row`. Those of the condition are not among them."""

        def pointwise(name: str, n: int, layer: PointwiseLayer) -> Inputs:
            for part, x in zip(("first", "second"), layer.inputs_of_row(), strict=True):
                yield f"{name}.{part}", n, x[..., None, :]

        for n in range(self.plan.layers.num_layers):
            yield "conv1", n, self.layers.conv1.taps(n)
            yield "conv2", n, self.layers.conv2.taps(n)
        for n, attention in enumerate(self.attention):
            for name in ("key", "query", "out"):
                yield from pointwise(f"attention.{name}", n, getattr(attention, name))
            yield "attention.query_weight", n, attention.query_features[..., None, :]
            yield "attention.key_value_weight", n, attention.key_features[..., None, :]
        for n, x in enumerate(self._to_merge):
            yield "merge", n, torch.cat([x, self._background], -1)[..., None, :]
        for n, layer in enumerate(self.output_layers):
            yield from pointwise("output", n, layer)
        yield "head", 0, self._activated[..., None, :]

    def finish_row(self, i: int) -> None:
        self.stem.finish_row(i, self.codes)
        self.layers.finish_row()

    def draw_row(self) -> None:
        """Pixel phase: `logits` and `codes` of the row."""
        for column in self._steps:
            for step in column:
                step()

    def _column_steps(self, j: int, groups: int) -> list[Step]:
        plan, layers = self.plan, self.layers
        first = layers.block_input(0)
        steps: list[Step] = [partial(first.unflatten(0, (groups, -1)).copy_, self.stem.row[:, j])]
        steps += layers.common_steps(j)
        last_out = self.output_layers[0].inputs if self.output_layers else self._last
        for block in range(plan.num_blocks):
            steps += layers.block_steps(block, j)
            x, y = layers.block_input(block), layers.block_output(block)
            out = layers.block_input(block + 1) if block + 1 < plan.num_blocks else last_out
            if plan.merge is not None:
                weight, kept = plan.merge[block, : plan.channels], self._to_merge[block, j]
                steps.append(partial(kept.copy_, y))
                steps.append(linear(kept, weight, self._merged[block, j], out=out))
            else:
                steps += self.attention[block].steps(j, x, y, self._background[j], out)
        outs = [layer.inputs for layer in self.output_layers[1:]] + [self._last]
        for layer, out in zip(self.output_layers, outs, strict=False):
            steps += layer.steps(j, out=out)
        return [
            *steps,
            elu(self._last, out=self._activated[j]),
            linear(self._activated[j], plan.head, plan.head_bias, out=self.logits[j]),
            self._draw_step(j),
            *self.stem.take(j, self.codes[j]),
            *self.positions.steps(),
        ]

    def _draw_step(self, j: int) -> Step:
        """From the logits of column j to its codes."""
        settings, batch = self._request.settings, self._request.batch_size
        logits, noise, codes = self.logits[j], self._noise[j], self.codes[j]
        known = None if self._request.known is None else self._known[j]

        def draw() -> None:
            without = logits[batch:].float() if settings.guided else None
            codes.copy_(settings.draw(logits[:batch].float(), noise, without, known=known))

        return draw


class _Stem:
    """Sums of gathered columns: for the rows above all at once, to the left as codes are drawn."""

    def __init__(self, plan: StemPlan, batch: int, size: tuple[int, int]) -> None:
        height, width = size
        num_left, num_embeddings, channels = plan.left.shape
        self.plan, self.width = plan, width
        self.row = plan.bias.new_zeros(batch, width + num_left, channels)
        columns = [column for _, column in plan.above_offsets]
        self._above = with_outside(plan.above)
        self._top = -min((row for row, _ in plan.above_offsets), default=0)
        self._left = max(0, -min(columns, default=0))
        padded_width = self._left + width + max(0, max(columns, default=0))
        # K stands for a position outside the map and adds nothing.
        self._codes = torch.full(
            (batch, self._top + height, padded_width),
            num_embeddings,
            dtype=torch.int64,
            device=plan.bias.device,
        )
        # What a code adds to the columns after it, next column first: [K, taps·C].
        self._to_right = plan.left.flip(0).transpose(0, 1).flatten(1)
        self._added = plan.bias.new_zeros(batch, num_left * channels)
        self._targets = [self.row[:, j + 1 : j + 1 + num_left].flatten(1) for j in range(width)]

    def start_row(self, i: int) -> None:
        if not self.plan.above_offsets:
            self.row[:, : self.width] = self.plan.bias[i]
            return
        columns = [
            self._codes[:, self._top + i + row, self._left + column :][:, : self.width]
            for row, column in self.plan.above_offsets
        ]
        taps = torch.stack(columns, dim=2)  # [B, W, taps]
        sums = gather_columns(taps.flatten(0, 1), self._above)  # [B·W, C]
        batch = self._codes.shape[0]
        self.row[:, : self.width] = sums.view(batch, self.width, -1) + self.plan.bias[i]

    def take(self, j: int, codes: Tensor) -> list[Step]:
        """Adds the contribution of the codes `[B]` of column j to the columns after it."""
        return [
            partial(torch.index_select, self._to_right, 0, codes, out=self._added),
            partial(self._targets[j].add_, self._added),
        ]

    def finish_row(self, i: int, codes: Tensor) -> None:
        """codes: int64 `[W, B]`."""
        start = self._left
        self._codes[:, self._top + i, start : start + self.width] = codes.t()
