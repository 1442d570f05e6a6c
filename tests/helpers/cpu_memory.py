"""Memory of a draw by engine `cpu`: formulas for the sizes of its caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.sampling.engines.cpu_pack import HALF_PANEL, PANEL

if TYPE_CHECKING:
    from vqvae2_fast.sampling.plan import SamplingPlan

__all__ = ["cache_bytes"]


def cache_bytes(
    plan: SamplingPlan, batch_size: int, schedule: tuple[int, int, int], *, guided: bool = False
) -> dict[str, int]:
    """Bytes that a draw keeps from one code to the next, by kind.

    With N network rows (`batch_size`, twice that if `guided`), n layers of C → R → 2C channels,
    A rows of taps above, an H×W map, L blocks with attention of h heads of d channels, and a
    condition of c channels at h'×w'; C, R and c count in whole panels of 32, 4 bytes per value.
    A segment has s columns of each of r rows, which lie below q rows of the condition; if one row
    is drawn at a time, s = W and r = q = 1.

        inputs      n·N·(A + 1)·(W + columns outside the map that a tap reads)·(C + R)
        outputs     n·N·r·s·(R + 2C)
        attention   L·N·h·(d·⌈HW⌉ to 32 + ⌈d⌉ to 16·HW)
        condition   B·w'·(h'·c + q·n·2C)

    This is for a draw that does not divide its samples into groups, and not for known codes or
    streams to decode. What a draw holds besides is the activations of a step, and the packed
    weights: once per prior and dtype.

    Args:
        schedule: s, the steps that a row is behind the one above, and r, as the packed plan says
            (csrc/cpu/sampler/schedule.h).
    """
    rows = batch_size * (2 if guided else 1)
    height, width = plan.size
    layers, conv = plan.layers, plan.layers.conv1
    channels, inner = _up(layers.channels), _up(layers.inner_channels)
    above = [column for _, column in conv.above_offsets]
    left = -min(above + list(conv.current_offsets), default=0)
    columns = max(left, 0) + width + max(above, default=0)
    per_row = layers.num_layers * rows
    segment, _, segment_rows = schedule
    values = {
        "inputs": per_row * (conv.rows_above + 1) * columns * (channels + inner),
        "outputs": per_row * segment_rows * segment * (inner + 2 * channels),
        "attention": 0,
        "condition": 0,
    }
    if plan.attention is not None:
        heads = plan.attention.num_heads
        dim = plan.attention.query_bias.shape[1] // heads
        area = height * width
        per_head = dim * _up(area) + _up(dim, HALF_PANEL) * area
        values["attention"] = plan.num_blocks * rows * heads * per_head
    if plan.condition is not None:
        above_height, above_width = plan.condition_sizes[-1]
        features = _up(plan.condition.stem_biases[0].shape[0])
        down = height // above_height
        above_rows = (segment_rows + down - 2) // down + 1
        per_column = above_height * features + above_rows * layers.num_layers * 2 * channels
        values["condition"] = batch_size * above_width * per_column
    return {name: 4 * count for name, count in values.items()}


def _up(size: int, multiple: int = PANEL) -> int:
    return -(-size // multiple) * multiple
