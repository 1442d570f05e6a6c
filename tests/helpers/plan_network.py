"""The network of a sampling plan over whole code maps, in PyTorch.

Its matrices are multiplied by a function that the caller gives, such as that of engine `cpu_w8a8`.
Everything else is what `csrc/cpu/sampler` computes, in its order: sums in blocks of 128 and in 16
lanes, exp, ELU and sigmoid as in `math-inl.h`. A fused multiply-add is computed in float64 and
rounded to float32. Channels are not padded here; in the engine they are, with zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.sampling.plan import AttentionPlan, GatedPlan, SamplingPlan

__all__ = ["Multiply", "plan_logits"]

PANEL, LANES, BLOCK, CHAINS = 32, 16, 128, 4


class Multiply(Protocol):
    def __call__(self, name: str, n: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x `[..., taps, inputs]` times weight `[taps·inputs, outputs]` plus bias.

        Args:
            name, n: The matrix, as the engine names it, and which of its kind it is.
        """
        ...


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·b + c, rounded once, but for a double rounding in one of about 2^29 cases."""
    return (a.double() * b.double() + c.double()).float()


def _split_exponential(x: Tensor) -> tuple[Tensor, Tensor]:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device="cpu")

    magic, x = number(12582912.0), x.clamp(-87.0, 88.0)
    n = fused(x, number(1.44269504088896341), magic) - magic
    r = fused(n, number(-0.693359375), x)
    r = fused(n, number(2.12194440e-4), r)
    p = torch.full_like(r, 1.9875691500e-4)
    for coefficient in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        p = fused(p, r, number(coefficient))
    return torch.exp2(n), fused(p, r * r, r)


def _exponential(x: Tensor) -> Tensor:
    scale, minus_one = _split_exponential(x)
    return fused(scale, minus_one, scale)


def _sigmoid(x: Tensor) -> Tensor:
    return 1.0 / (1.0 + _exponential(0.0 - x))


def _elu(x: Tensor) -> Tensor:
    scale, minus_one = _split_exponential(x)
    return torch.where(x > 0, x, fused(scale, minus_one, scale - 1.0))


def _gate(gates: Tensor) -> Tensor:
    values, openings = gates.chunk(2, -1)
    return values * _sigmoid(openings)


def _product(x: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
    """x `[..., inputs]` times float32 weight `[inputs, outputs]`, block by block."""
    out = initial.expand(*x.shape[:-1], weight.shape[-1])
    for begin in range(0, x.shape[-1], BLOCK):
        total = torch.zeros_like(out)
        for k in range(begin, min(begin + BLOCK, x.shape[-1])):
            total = fused(x[..., k, None], weight[k], total)
        out = out + total
    return out


def _shifted(x: Tensor, row: int, column: int) -> Tensor:
    """x `[B, H, W, C]` at (i + row, j + column) for each (i, j), zeros outside."""
    height, width = x.shape[1:3]
    rows, columns = abs(row), abs(column)
    padded = F.pad(x, (0, 0, columns, columns, rows, rows))
    begin = (rows + row, columns + column)
    return padded[:, begin[0] : begin[0] + height, begin[1] : begin[1] + width]


def _gathered(codes: Tensor, table: Tensor, offset: tuple[int, int]) -> Tensor:
    """Rows of table `[K, C]` at the codes at an offset, zeros outside: `[B, H, W, C]`."""
    moved = _shifted(codes[..., None] + 1, *offset)[..., 0]
    return F.pad(table, (0, 0, 1, 0))[moved]


def _convolved(
    name: str, n: int, plan: GatedPlan, x: Tensor, second: bool, multiply: Multiply, bias: Tensor
) -> Tensor:
    conv = plan.conv2 if second else plan.conv1
    offsets = [*conv.above_offsets, *((0, column) for column in conv.current_offsets)]
    taps = torch.stack([_shifted(x, *offset) for offset in offsets], dim=-2)
    return multiply(name, n, taps, torch.cat([conv.above[n], conv.current[n]]), bias)


def _pointwise(
    name: str,
    n: int,
    plan: GatedPlan,
    x: Tensor,
    multiply: Multiply,
    auxiliary: Tensor | None = None,
) -> Tensor:
    inputs, weight = _elu(x), plan.conv1.current[n]
    if plan.auxiliary is not None and auxiliary is not None:
        inputs = torch.cat([inputs, auxiliary], -1)
        weight = torch.cat([weight, plan.auxiliary[n]])
    inner = multiply(f"{name}.first", n, inputs[..., None, :], weight, plan.conv1.bias[n])
    inner = _elu(inner)[..., None, :]
    gates = multiply(f"{name}.second", n, inner, plan.conv2.current[n], plan.conv2.bias[n])
    return x + _gate(gates)


def _attended(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Heads `[N, P, d]`, the query scaled; position p sees those before it, position 0 nothing."""
    count = query.shape[1]
    earlier = torch.ones(count, count, dtype=torch.bool, device=query.device).tril(-1)
    none = query.new_zeros(())
    pairs = zip(query, keys, strict=True)
    scores = torch.stack([_product(q, k.t(), none) for q, k in pairs])  # [N, P, P]
    largest = scores.where(earlier > 0, -3.0e38).amax(-1, keepdim=True)
    weights = _exponential(scores - largest) * earlier
    total = torch.zeros(*scores.shape[:2], LANES, dtype=torch.float32, device=query.device)
    for part in F.pad(weights, (0, -count % LANES)).unflatten(-1, (-1, LANES)).unbind(-2):
        total = total + part
    while total.shape[-1] > 1:
        low, high = total.chunk(2, -1)
        total = low + high
    sums = [torch.zeros_like(values) for _ in range(CHAINS)]
    for before in range(count):
        chain = before % CHAINS
        weight = weights[..., before, None]
        sums[chain] = fused(weight, values[:, before, None], sums[chain])
    out = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * (1.0 / total)
    return torch.cat([torch.zeros_like(out[:, :1]), out[:, 1:]], 1)


def _attention(
    plan: AttentionPlan,
    n: int,
    x: Tensor,
    y: Tensor,
    background: Tensor,
    multiply: Multiply,
) -> Tensor:
    kx = _pointwise("attention.key", n, plan.key, torch.cat([x, y, background], -1), multiply)
    qx = _pointwise("attention.query", n, plan.query, torch.cat([y, background], -1), multiply)
    width = plan.query_bias.shape[1]
    dim = width // plan.num_heads
    scale = dim**-0.5
    query = multiply(
        "attention.query_weight",
        n,
        qx[..., None, :],
        plan.query_weight[n] * scale,
        plan.query_bias[n] * scale,
    )
    pair = multiply(
        "attention.key_value_weight",
        n,
        kx[..., None, :],
        plan.key_value_weight[n],
        plan.key_value_bias[n],
    )
    heads = [
        tensor.flatten(1, 2).unflatten(-1, (plan.num_heads, dim))
        for tensor in (query, *pair.chunk(2, -1))
    ]
    by_head = [tensor.transpose(1, 2).flatten(0, 1) for tensor in heads]  # [B·heads, P, d]
    attended = _attended(by_head[0], by_head[1], by_head[2])
    attended = attended.unflatten(0, (-1, plan.num_heads)).transpose(1, 2).flatten(2)
    auxiliary = _elu(attended.view(*y.shape[:3], width))
    return _pointwise("attention.out", n, plan.out, y, multiply, auxiliary)


def _padded(x: Tensor, dim: int) -> Tensor:
    return F.pad(x, [0, 0] * (-dim - 1) + [0, -x.shape[dim] % PANEL])


def _features(plan: SamplingPlan, maps: Sequence[Tensor]) -> Tensor:
    """The conditioning stack, `[B, h, w, C]`, in float32 as in engine `cpu`."""
    condition = plan.condition
    assert condition is not None
    size = condition.kernel_size
    offsets = [(t // size - size // 2, t % size - size // 2) for t in range(size * size)]
    features: Tensor | None = None
    for codes, table, bias in zip(maps, condition.stems, condition.stem_biases, strict=True):
        out = bias.expand(*codes.shape, -1)
        for own, offset in zip(table, offsets, strict=True):
            out = out + _gathered(codes, own, offset)
        if features is not None:
            down, right = out.shape[1] // features.shape[1], out.shape[2] // features.shape[2]
            out = out + features.repeat_interleave(down, 1).repeat_interleave(right, 2)
        features = out
    assert features is not None
    for n in range(condition.num_layers):
        inner = features
        for conv in (condition.conv1, condition.conv2):
            inputs, out, weight = _padded(_elu(inner), -1), conv.biases[n], conv.weights[n]
            for row in range(size):
                # A row of taps is one product; its channels are padded.
                taps = [_shifted(inputs, *offset) for offset in offsets[row * size :][:size]]
                by_tap = _padded(weight[:, :, row].permute(2, 1, 0), -2).flatten(0, 1)
                out = _product(torch.cat(taps, -1), by_tap, out)
            inner = out
        features = features + _gate(inner)
    return features


def plan_logits(
    plan: SamplingPlan,
    codes: Tensor,
    maps: Sequence[Tensor],
    labels: Tensor | None,
    multiply: Multiply,
) -> Tensor:
    """Logits float32 `[B, K, H, W]` of each position of codes int64 `[B, H, W]`."""
    stem, layers = plan.stem, plan.layers
    x = stem.bias.expand(len(codes), -1, -1, -1)
    tables = [*zip(stem.above_offsets, stem.above, strict=True)]
    tables += [*zip([(0, column) for column in stem.left_offsets], stem.left, strict=True)]
    for offset, table in tables:
        x = x + _gathered(codes, table, offset)
    background = plan.background.expand(len(codes), -1, -1, -1)
    added = None
    if plan.condition is not None:
        features = _padded(_features(plan, maps), -1)
    for block in range(plan.num_blocks):
        y = x
        for n in range(block * plan.layers_per_block, (block + 1) * plan.layers_per_block):
            inner = _convolved("conv1", n, layers, _elu(y), False, multiply, layers.conv1.bias[n])
            bias = layers.conv2.bias[n]
            if layers.classes is not None:
                assert labels is not None
                bias = (bias + layers.classes[n][labels])[:, None, None]  # [B, 1, 1, 2C]
            if plan.condition is not None and layers.condition is not None:
                weight = _padded(layers.condition.current[n], -2)
                added = _product(features, weight, torch.zeros((), dtype=torch.float32))
                down, right = plan.condition.scale
                added = added.repeat_interleave(down, 1).repeat_interleave(right, 2)
                bias = bias + added
            gates = _convolved("conv2", n, layers, _elu(inner), True, multiply, bias)
            y = y + _gate(gates)
        if plan.attention is not None:
            x = _attention(plan.attention, block, x, y, background, multiply)
        else:
            assert plan.merge is not None and plan.merge_bias is not None
            joined = torch.cat([y, background], -1)[..., None, :]
            x = multiply("merge", block, joined, plan.merge[block], plan.merge_bias[block])
    if plan.output_layers is not None:
        for n in range(plan.output_layers.num_layers):
            x = _pointwise("output", n, plan.output_layers, x, multiply)
    logits = multiply("head", 0, _elu(x)[..., None, :], plan.head, plan.head_bias)
    return logits.permute(0, 3, 1, 2)
