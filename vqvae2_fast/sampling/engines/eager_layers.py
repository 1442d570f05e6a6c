"""Parts of engine `eager`: static buffers, and the steps that fill them.

A *step* is a call with all its arguments bound: a PyTorch operator that reads and writes views of
fixed buffers. The steps of a column are made once and replayed in every row, which saves Python
time.

Sizes: n layers, N rows of the network's batch, W columns, C channels.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.modules.summed_labels import summed_rows
from vqvae2_fast.sampling.bounds import outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.sampling.plan import AttentionPlan, ConvPlan, GatedPlan

    Step = Callable[[], object]

__all__ = [
    "AttentionCache",
    "CausalLayers",
    "PointwiseLayer",
    "Positions",
    "add",
    "elu",
    "elu_",
    "glu",
    "linear",
]


def elu(x: Tensor, out: Tensor) -> Step:
    return partial(torch.ops.aten.elu.out, x, out=out)


def elu_(x: Tensor) -> Step:
    return partial(F.elu, x, inplace=True)


def glu(x: Tensor, out: Tensor) -> Step:
    """The first half of the last dimension, times the sigmoid of its second half."""
    return partial(torch.ops.aten.glu.out, x, out=out)


def add(x: Tensor, y: Tensor, out: Tensor) -> Step:
    return partial(torch.add, x, y, out=out)


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Step:
    """x `[N, C_in]`, weight `[C_in, C_out]`, bias `[C_out]`."""
    return partial(torch.addmm, bias, x, weight, out=out)


class ConvCache:
    """Inputs of n causal convolutions around row i, and their outputs in row i.

    values: `[n, N, A + 1, W + padding, C_in]`: the A rows above and row i as the convolution reads
        them (activated); zeros outside the map.
    outputs: `[n, N, W, C_out]`: bias and taps above after `start_row`; the current taps of each
        column are then added in place.
    """

    def __init__(self, plan: ConvPlan, batch: int, width: int) -> None:
        self.plan = plan
        num_layers, _, out_channels = plan.current.shape
        num_columns = plan.columns[1] - plan.columns[0] + 1
        in_channels = plan.in_channels
        left, right = -plan.columns[0], max(0, plan.columns[1])
        new = plan.bias.new_zeros
        self.left = left
        self.values = new(num_layers, batch, plan.rows_above + 1, left + width + right, in_channels)
        self.outputs = new(num_layers, batch, width, out_channels)
        # Windows of the rows above, overlapping: [n, N, W, A, columns, C_in].
        strides = self.values.stride()
        self._windows = self.values.as_strided(
            (num_layers, batch, width, plan.rows_above, num_columns, in_channels),
            (strides[0], strides[1], strides[3], strides[2], strides[3], 1),
        )
        self._gathered = new(self._windows.shape[1:])

    def start_row(self) -> None:
        """Row phase: bias and taps above, a matrix product per layer for the whole row."""
        matrix = self._gathered.flatten(2).flatten(0, 1)  # [N·W, A·columns·C_in]
        for n, outputs in enumerate(self.outputs):
            # One layer at a time, because the gathered inputs of one fit into the cache and those
            # of all do not.
            self._gathered.copy_(self._windows[n])
            torch.addmm(
                self.plan.bias[n],
                matrix,
                self.plan.above[n],
                out=outputs.view(matrix.shape[0], -1),
            )

    def finish_row(self) -> None:
        self.values[:, :, :-1] = self.values[:, :, 1:].clone()

    def outside(self) -> Tensor:
        """Whether an input of row i is beyond the bound, before `finish_row`."""
        return outside(self.values[:, :, -1])

    def taps(self, n: int) -> Tensor:
        """`[N, W, taps, C_in]`: what layer n read in row i, before `finish_row`."""
        width = self.outputs.shape[2]
        current = [
            self.values[n, :, -1, self.left + offset :][:, :width]
            for offset in self.plan.current_offsets
        ]
        above = self._windows[n].flatten(2, 3)
        return torch.cat([above, torch.stack(current, 2)], 2) if current else above

    def input_at(self, j: int) -> Tensor:
        """`[n, N, C_in]`: where the input at column j of row i is put."""
        return self.values[:, :, -1, self.left + j]

    def window_at(self, j: int) -> Tensor:
        """`[n, N, taps·C_in]`: what the current taps read."""
        offsets = self.plan.current_offsets
        start = self.left + j + offsets[0]
        return self.values[:, :, -1, start : start + len(offsets)].flatten(2)

    def output_at(self, j: int) -> Tensor:
        return self.outputs[:, :, j]


class CausalLayers:
    """All causal gated layers of a prior, and what the condition and class add to their gates."""

    def __init__(
        self,
        plan: GatedPlan,
        layers_per_block: int,
        batch: int,
        width: int,
        labels: Tensor | None,
    ) -> None:
        """labels: int64 `[N]` for a prior with classes, or `[N, 1 + W]` with words."""
        self.plan, self.layers_per_block = plan, layers_per_block
        self.conv1 = ConvCache(plan.conv1, batch, width)
        self.conv2 = ConvCache(plan.conv2, batch, width)
        new = plan.conv1.bias.new_zeros
        self._of_class: Tensor | None = None
        if plan.classes is not None:
            assert labels is not None
            table = plan.classes
            rows = summed_rows(lambda each: table[:, each], labels)
            self._of_class = rows[:, :, None]  # [n, N, 1, 2C]
        num_blocks = plan.num_layers // layers_per_block
        # The input of each block and what each layer adds to it, and the running sums of these.
        self._added = new(num_blocks, layers_per_block + 1, batch, plan.channels)
        self._sums = torch.zeros_like(self._added)
        self._inner = new(batch, plan.channels)

    def start_row(self, condition: Tensor | None) -> None:
        """condition: `[n, B, w, 2C]` at its own width, for all N = groups·B rows of the batch."""
        self.conv1.start_row()
        self.conv2.start_row()
        outputs = self.conv2.outputs  # [n, N, W, 2C]
        if self._of_class is not None:
            outputs += self._of_class
        if condition is not None:
            num_layers, batch, columns, channels = condition.shape
            spread = outputs.view(
                num_layers, -1, batch, columns, outputs.shape[2] // columns, channels
            )
            spread += condition[:, None, :, :, None]

    def finish_row(self) -> None:
        self.conv1.finish_row()
        self.conv2.finish_row()

    def outside(self) -> Tensor:
        """Whether an input of row i is beyond the bound, before `finish_row`."""
        return self.conv1.outside() | self.conv2.outside()

    def block_input(self, block: int) -> Tensor:
        return self._added[block, 0]

    def block_output(self, block: int) -> Tensor:
        return self._sums[block, -1]

    def common_steps(self, j: int) -> list[Step]:
        """What all layers do at once at column j: everything, if none reads its own position."""
        if self.plan.conv1.reads_itself:
            return []
        steps: list[Step] = []
        for cache, after in ((self.conv1, self.conv2.input_at(j)), (self.conv2, None)):
            output = cache.output_at(j)
            if cache.plan.current_offsets:
                steps.append(partial(output.baddbmm_, cache.window_at(j), cache.plan.current))
            if after is not None:
                steps.append(elu(output, out=after))
            else:
                gates = output.unflatten(0, (-1, self.layers_per_block))
                steps.append(glu(gates, out=self._added[:, 1:]))
        return steps

    def block_steps(self, block: int, j: int) -> list[Step]:
        """From `block_input` to `block_output` at column j."""
        first, last = block * self.layers_per_block, (block + 1) * self.layers_per_block
        sums, added = self._sums[block], self._added[block]
        inputs1, inputs2 = self.conv1.input_at(j), self.conv2.input_at(j)
        if not self.plan.conv1.reads_itself:
            return [
                partial(torch.cumsum, added, 0, out=sums),
                elu(sums[:-1], out=inputs1[first:last]),
            ]
        output1, output2 = self.conv1.output_at(j), self.conv2.output_at(j)
        window1, window2 = self.conv1.window_at(j), self.conv2.window_at(j)
        x = added[0]
        steps: list[Step] = []
        for n in range(first, last):
            following = sums[n - first + 1]
            steps += [
                elu(x, out=inputs1[n]),
                partial(output1[n].addmm_, window1[n], self.plan.conv1.current[n]),
                elu(output1[n], out=inputs2[n]),
                partial(output2[n].addmm_, window2[n], self.plan.conv2.current[n]),
                glu(output2[n], out=self._inner),
                add(x, self._inner, out=following),
            ]
            x = following
        return steps


class PointwiseLayer:
    """Layer n of pointwise gated layers: `inputs` is filled by the caller, then `steps` run.

    What its matrices are given is kept for all columns of a row, `[W, N, …]`, to be looked at at
    its end.
    """

    def __init__(self, plan: GatedPlan, n: int, batch: int, width: int) -> None:
        weight1 = plan.conv1.current[n]
        if plan.auxiliary is not None:
            # Both inputs of the first layer lie side by side, so that one product suffices.
            weight1 = torch.cat([weight1, plan.auxiliary[n]])
        self._weights = (weight1, plan.conv1.bias[n], plan.conv2.current[n], plan.conv2.bias[n])
        new = plan.conv1.bias.new_zeros
        self.channels = plan.channels
        self.inputs = new(batch, weight1.shape[0])  # [N, C (+ C_aux)]
        self._activated = new(width, *self.inputs.shape)
        self._inner = new(width, batch, plan.inner_channels)
        self._gates = new(batch, 2 * plan.channels)
        self._added = new(batch, plan.channels)

    def steps(self, j: int, out: Tensor) -> list[Step]:
        weight1, bias1, weight2, bias2 = self._weights
        activated, inner = self._activated[j], self._inner[j]
        return [
            elu(self.inputs, out=activated),
            linear(activated, weight1, bias1, out=inner),
            elu_(inner),
            linear(inner, weight2, bias2, out=self._gates),
            glu(self._gates, out=self._added),
            add(self.inputs[:, : self.channels], self._added, out=out),
        ]

    def inputs_of_row(self) -> tuple[Tensor, Tensor]:
        """What both matrices were given in the row: `[W, N, C (+ C_aux)]` and `[W, N, R]`."""
        return self._activated, self._inner


class Positions:
    """Which positions of the map attention sees: those before the current one.

    Tensors hold the current position, so that the steps of a column are the same in every row:
    `index`, int64 `[1]`, and `bias`, `[1, 1, positions]`, which is 0 before that position and, from
    there on, so low that no weight remains. Attention looks at the first `reach` positions, up to
    the end of the row.
    """

    def __init__(self, num_positions: int, like: Tensor) -> None:
        self.index = torch.zeros(1, dtype=torch.int64, device=like.device)
        # Half of the lowest value, so that no score added to it overflows.
        lowest = torch.finfo(like.dtype).min / 2
        self.bias = like.new_full((1, 1, num_positions), lowest)
        self._flat = self.bias.view(-1)
        self.reach = num_positions

    def steps(self) -> list[Step]:
        """Move to the next position."""
        return [partial(self._flat.index_fill_, 0, self.index, 0.0), partial(self.index.add_, 1)]


class AttentionCache:
    """The attention part of one block, with the keys and values of all positions so far.

    The first position sees nothing: its weights are all equal, but the values are still zero.
    """

    def __init__(
        self, plan: AttentionPlan, block: int, batch: int, width: int, positions: Positions
    ) -> None:
        self._width = width
        self.key = PointwiseLayer(plan.key, block, batch, width)
        self.query = PointwiseLayer(plan.query, block, batch, width)
        self.out = PointwiseLayer(plan.out, block, batch, width)
        channels, heads = plan.query_bias.shape[1], plan.num_heads
        dim, num_positions = channels // heads, positions.bias.shape[2]
        new = plan.query_bias.new_zeros
        scale = dim**-0.5
        self._query_weight = plan.query_weight[block] * scale, plan.query_bias[block] * scale
        self._key_value_weight = plan.key_value_weight[block], plan.key_value_bias[block]
        # Kept for all columns of a row, as in `PointwiseLayer`.
        self.key_features = new(width, batch, plan.key.channels)
        self.query_features = new(width, batch, plan.query.channels)
        self._query = new(batch, channels)
        self._attended = new(batch, channels)
        self._key_value = new(batch, 2 * channels)
        # [N, 2, heads, d] -> [N·heads, d, 1] and [N·heads, 1, d]
        key, value = self._key_value.view(batch, 2, heads, dim).unbind(1)
        self._key, self._value = key[..., None], value[:, :, None]
        # Keys have their positions last, so that a product with a query reads rows.
        self._keys = new(batch, heads, dim, num_positions)
        self._values = new(batch, heads, num_positions, dim)
        self._scores, self._weights = (new(batch * heads, 1, num_positions) for _ in range(2))
        self._positions = positions
        self._query_of_head = self._query.view(-1, 1, dim)
        self._attended_of_head = self._attended.view(-1, 1, dim)
        self.look_back()

    def look_back(self) -> None:
        """Make the views again after a change of `positions.reach`."""
        reach = self._positions.reach
        self._seen = (
            self._positions.bias[..., :reach],
            self._keys.flatten(0, 1)[..., :reach],
            self._values.flatten(0, 1)[:, :reach],
            self._scores[..., :reach],
            self._weights[..., :reach],
        )

    def keys_of_row(self, i: int) -> Tensor:
        return self._keys[..., i * self._width : (i + 1) * self._width]

    def steps(self, j: int, x: Tensor, y: Tensor, background: Tensor, out: Tensor) -> list[Step]:
        """x, y: a block's input and its layers' output, `[N, C]`; background `[N, 2]`."""
        index = self._positions.index
        key_features, query_features = self.key_features[j], self.query_features[j]
        return [
            partial(torch.cat, [x, y, background], 1, out=self.key.inputs),
            *self.key.steps(j, out=key_features),
            linear(key_features, *self._key_value_weight, out=self._key_value),
            partial(torch.cat, [y, background], 1, out=self.query.inputs),
            *self.query.steps(j, out=query_features),
            linear(query_features, *self._query_weight, out=self._query),
            self._attend,
            partial(self._keys.index_copy_, 3, index, self._key),
            partial(self._values.index_copy_, 2, index, self._value),
            partial(torch.cat, [y, self._attended], 1, out=self.out.inputs),
            *self.out.steps(j, out=out),
        ]

    def _attend(self) -> None:
        """Attention of one query over the positions before it."""
        bias, keys, values, scores, weights = self._seen
        torch.baddbmm(bias, self._query_of_head, keys, out=scores)
        torch.softmax(scores, dim=2, out=weights)
        torch.bmm(weights, values, out=self._attended_of_head)
