"""Engine `cpu`: the two phases in the compiled library, a whole map in one call.

This file packs a plan's weights once, in the layout of `csrc/cpu/sampler/plan.h`, and passes draws
to the library. The bits of a sample's codes and logits do not depend on the batch, the number of
threads or the SIMD level: see README.md in this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.kept import Kept
from vqvae2_fast.sampling.request import Drawn

if TYPE_CHECKING:
    from vqvae2_fast.sampling.plan import ConditionPlan, ConvPlan, GatedPlan, SamplingPlan
    from vqvae2_fast.sampling.request import DrawRequest

__all__ = ["draw_cpu", "draw_cpu_timed", "why_not_cpu"]

# Columns of a packed panel, and values (or gates) of a gated panel: kPanel and kHalfPanel of C++.
PANEL, HALF_PANEL = 32, 16
# How many words of 4 bytes the 32 weights of one input in a panel take.
_WORDS = {torch.float32: 32, torch.bfloat16: 16, torch.int8: 8}

# Packed plans by the dtype of the weights.
_packed: Kept[SamplingPlan, Any] = Kept(capacity=len(_WORDS))


def why_not_cpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this engine cannot draw from such a prior, None if it can."""
    if _native.module is None:
        return _native.MISSING_REASON
    if device.type != "cpu":
        return f"the prior is on {device}"
    if dtype != torch.float32:
        return f"the prior's weights are {dtype}, not float32"
    return None


def draw_cpu(
    plan: SamplingPlan, request: DrawRequest, weights: torch.dtype = torch.float32
) -> Drawn:
    """Draw a map with `torch.get_num_threads()` threads.

    Args:
        weights: float32, or the dtype to which the matrices are rounded: bfloat16, or int8 for
            multiples of 1/127 of the largest weight of each output. Everything else, sums included,
            stays float32. A position then reads half or a quarter of the bytes, but the prior is a
            slightly different one.

    Raises:
        RuntimeError: No compiled module, a prior on another device or of another dtype, or a system
            that starts fewer threads than torch is set to.
        KeyboardInterrupt: Between two rows, like anything that `progress` and `on_row` raise.
    """
    return draw_cpu_timed(plan, request, weights)[0]


def draw_cpu_timed(
    plan: SamplingPlan,
    request: DrawRequest,
    weights: torch.dtype = torch.float32,
    profile: Tensor | None = None,
) -> tuple[Drawn, dict[str, float]]:
    """`draw_cpu`, with the seconds of `condition`, `rows` and `pixels` and the number of `steps`.

    Args:
        profile: float32 zeros `[H·W, stages, threads, 2]`, to be filled with the microseconds that
            each thread worked in each stage of the pixel phase (`SAMPLER_STAGES` of the compiled
            module) at each position, and waited at its end.
    """
    reason = why_not_cpu(plan.device, plan.head.dtype)
    if reason is not None:
        raise RuntimeError(f"engine cpu: {reason}.")
    batch, (height, width) = request.batch_size, plan.size
    codes = torch.zeros(batch, height, width, dtype=torch.int64)
    log_prob = torch.zeros(batch, height, width) if request.want_log_prob else None
    logits = None
    if request.want_logits:
        logits = torch.zeros(batch, height, width, plan.num_embeddings)
    maps = [codes.contiguous() for codes in request.maps]
    inputs = [
        None if tensor is None else tensor.contiguous()
        for tensor in (request.labels, request.known, request.noise.given, request.noise.rows)
    ]
    settings = request.settings
    intervals = None
    if request.want_intervals:
        intervals = torch.zeros(batch, height, width, 2, dtype=torch.int32)
    seconds, finished = packed_plan(plan, weights).draw(
        batch=batch,
        labels=_address(inputs[0]),
        maps=[_address(codes) for codes in maps],
        known=_address(inputs[1]),
        noise=_address(inputs[2]),
        seed=request.noise.seed & (2**64 - 1),
        first_sample=request.noise.first_sample,
        rows=_address(inputs[3]),
        stream=request.noise.stream,
        temperature=settings.temperature,
        top_k=settings.top_k or 0,
        top_p=1.0 if settings.top_p is None else settings.top_p,
        guidance=settings.guidance_scale,
        guided=settings.guided,
        codes=_address(codes),
        log_prob=_address(log_prob),
        logits=_address(logits),
        profile=_address(profile),
        intervals=_address(intervals),
        streams=[(_address(words), len(words)) for words in request.streams],
        window=settings.window,
        threads=torch.get_num_threads(),
        progress=(lambda rows, _: request.row_done(codes, rows)) if request.watched else None,
    )
    if logits is not None:
        logits = logits.permute(0, 3, 1, 2)  # [B, K, H, W]
    return Drawn(codes, log_prob, logits, intervals, finished), seconds


def packed_plan(plan: SamplingPlan, weights: torch.dtype = torch.float32) -> Any:
    """The plan's packed weights, a copy that the library holds for as long as the plan lives."""

    def packed() -> Any:
        integers, tensors = described_plan(plan, weights)
        ready = {name: t.detach().contiguous() for name, t in tensors.items()}
        assert _native.module is not None
        return _native.module.SamplerPlan(
            integers={name: [v] if isinstance(v, int) else v for name, v in integers.items()},
            tensors={name: (t.data_ptr(), t.numel()) for name, t in ready.items()},
        )

    return _packed.get(plan, weights, packed)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _round_up(size: int) -> int:
    return -(-size // PANEL) * PANEL


def _pad(x: Tensor, parts: list[int], dim: int, *, last: bool = True) -> Tensor:
    """x with each part of its last dimension filled up with zeros to whole panels.

    Args:
        last: Whether the last part is filled up too.
    """
    pieces = list(x.split(parts, dim))
    for n, piece in enumerate(pieces):
        if n + 1 < len(pieces) or last:
            fill = _round_up(piece.shape[dim]) - piece.shape[dim]
            pieces[n] = F.pad(piece, [0, 0] * (-dim - 1) + [0, fill])
    return torch.cat(pieces, dim)


def _pad_gates(x: Tensor, parts: list[int]) -> Tensor:
    """`[..., 2C]`, values then gates -> `[..., 2·padded C]` in alternating half panels."""
    halves = [_pad(half, parts, -1).unflatten(-1, (-1, HALF_PANEL)) for half in x.chunk(2, -1)]
    return torch.stack(halves, dim=-2).flatten(-3)  # [..., C/16, 2, 16] -> [..., 2C]


def _panels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`[..., inputs, outputs]` -> `[..., panels, inputs, 32]`; for bfloat16 and int8 (to which the
    weight is rounded already) 16 and 8 words of 4 bytes."""
    panels = weight.unflatten(-1, (-1, PANEL)).transpose(-3, -2)
    if dtype == torch.float32:
        return panels
    if dtype == torch.int8:
        return panels.contiguous().view(torch.float32)
    # Column i in the low half of word i, column i + 16 in its high half.
    halves = panels.to(dtype).unflatten(-1, (2, HALF_PANEL)).transpose(-1, -2).flatten(-2)
    return halves.view(torch.float32)


def int8_scales(*weights: Tensor) -> Tensor:
    """Weights `[n, ..., outputs]` -> `[n, outputs]`: the largest magnitude of each output / 127."""
    largest = torch.zeros(weights[0].shape[0], weights[0].shape[-1])
    for weight in weights:
        if weight.numel():
            largest = torch.maximum(largest, weight.flatten(1, -2).abs().amax(1))
    return torch.where(largest > 0, largest / 127, 1.0)


def to_int8(weight: Tensor, scale: Tensor) -> Tensor:
    """Weight `[n, ..., outputs]` over its scale `[n, outputs]`, rounded: in -127..127."""
    shape = (scale.shape[0], *[1] * (weight.ndim - 2), scale.shape[1])
    return (weight / scale.view(shape)).round().to(torch.int8)


class _Description:
    """Collects the integers and tensors that `plan.cpp` reads by name."""

    def __init__(self, weights: torch.dtype) -> None:
        self.weights = weights
        self.integers: dict[str, int | list[int]] = {"words": _WORDS[weights]}
        self.tensors: dict[str, Tensor] = {}

    def scaled(self, name: str, *weights: Tensor) -> list[Tensor]:
        """Weights `[n, ..., outputs]` ready to be packed, with one scale per n and output."""
        if self.weights != torch.int8:
            return list(weights)
        scale = int8_scales(*weights)
        self.tensors[f"{name}.scale"] = scale
        return [to_int8(weight, scale) for weight in weights]

    def matrices(self, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
        """Add weight `[n, inputs, outputs]` with padded outputs."""
        (weight,) = self.scaled(name, weight)
        self.tensors[f"{name}.weight"] = _panels(weight, self.weights)
        if bias is not None:
            self.tensors[f"{name}.bias"] = bias

    def pointwise(
        self, name: str, plan: GatedPlan, parts: list[int], *, whole: bool = False
    ) -> None:
        """Add n pointwise gated layers over inputs of `parts`; `whole` pads the last part too."""
        weight = _pad(plan.conv1.current, parts, -2, last=whole)
        if plan.auxiliary is not None:
            weight = torch.cat([weight, plan.auxiliary], dim=-2)
        inner = plan.inner_channels
        self.matrices(
            f"{name}.first", _pad(weight, [inner], -1), _pad(plan.conv1.bias, [inner], -1)
        )
        self.matrices(
            f"{name}.second",
            _pad_gates(_pad(plan.conv2.current, [inner], -2), parts),
            _pad_gates(plan.conv2.bias, parts),
        )

    def convolutions(self, name: str, plan: ConvPlan, in_channels: int, outputs: Any) -> None:
        """Add convolutions; `outputs` pads and orders their last dimension."""

        def by_tap(weight: Tensor, taps: int) -> Tensor:
            weight = weight.unflatten(1, (taps, in_channels))
            return outputs(_pad(weight, [in_channels], -2))  # [n, taps, C_in, C_out]

        above = by_tap(plan.above, len(plan.above_offsets))
        current = by_tap(plan.current, len(plan.current_offsets))
        above, current = self.scaled(name, above, current)
        self.tensors[f"{name}.above"] = _panels(above.flatten(1, 2), self.weights)
        self.tensors[f"{name}.current"] = _panels(current, self.weights)
        self.tensors[f"{name}.bias"] = outputs(plan.bias)


def described_plan(
    plan: SamplingPlan, weights: torch.dtype = torch.float32
) -> tuple[dict[str, int | list[int]], dict[str, Tensor]]:
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
    d.tensors["background"] = plan.background

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
    d.convolutions("conv1", layers.conv1, channels, lambda x: _pad(x, [inner], -1))
    d.convolutions("conv2", layers.conv2, inner, lambda x: _pad_gates(x, [channels]))
    if layers.classes is not None:
        d.tensors["classes"] = _pad_gates(layers.classes, [channels])

    _describe_attention(d, plan)
    if plan.output_layers is not None:
        d.pointwise("output", plan.output_layers, [channels], whole=True)
        d.integers["output.inner_channels"] = _round_up(plan.output_layers.inner_channels)
    head = _pad(_pad(plan.head, [channels], -2), [plan.num_embeddings], -1)
    d.matrices("head", head[None], _pad(plan.head_bias, [plan.num_embeddings], -1))
    d.integers["condition.sizes"] = [side for size in plan.condition_sizes for side in size]
    if plan.condition is not None:
        _describe_condition(d, plan.condition)
        assert layers.condition is not None
        features = layers.condition.shape[1]
        d.matrices(
            "layer_condition", _pad_gates(_pad(layers.condition, [features], -2), [channels])
        )
    return d.integers, d.tensors


def _describe_stem(d: _Description, plan: SamplingPlan) -> None:
    stem, channels = plan.stem, plan.channels
    d.integers["stem.above_offsets"] = [step for offset in stem.above_offsets for step in offset]
    d.integers["stem.num_left"] = len(stem.left_offsets)
    for name, table in (("above", stem.above), ("left", stem.left), ("bias", stem.bias)):
        d.tensors[f"stem.{name}"] = _pad(table, [channels], -1)


def _describe_attention(d: _Description, plan: SamplingPlan) -> None:
    channels, attention = plan.channels, plan.attention
    d.integers["attention.num_heads"] = 0
    if attention is None:
        assert plan.merge is not None and plan.merge_bias is not None
        weight = _pad(plan.merge, [channels, 2], -2, last=False)
        d.matrices("merge", _pad(weight, [channels], -1), _pad(plan.merge_bias, [channels], -1))
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
    query = _pad(attention.query_weight * scale, without_input, -2, last=False)
    d.matrices(
        "attention.query_weight",
        _pad(query, [width], -1),
        _pad(attention.query_bias * scale, [width], -1),
    )
    key_value = _pad(attention.key_value_weight, joined, -2, last=False)
    d.matrices(
        "attention.key_value_weight",
        _pad(key_value, [2 * width], -1),
        _pad(attention.key_value_bias, [2 * width], -1),
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
        d.tensors[f"condition.stem{n}.table"] = _pad(table, [channels], -1)
        d.tensors[f"condition.stem{n}.bias"] = _pad(bias, [channels], -1)
    if not plan.layers:
        return

    def by_tap(weights: list[Tensor], in_channels: int) -> Tensor:
        taps = torch.stack(weights).flatten(3).permute(0, 3, 2, 1)  # [n, q·q, C_in, C_out]
        return _pad(taps, [in_channels], -2).flatten(1, 2)

    weights1, biases1, weights2, biases2 = (
        list(column) for column in zip(*plan.layers, strict=True)
    )
    d.matrices(
        "condition.first",
        _pad(by_tap(weights1, channels), [inner], -1),
        _pad(torch.stack(biases1), [inner], -1),
    )
    d.matrices(
        "condition.second",
        _pad_gates(by_tap(weights2, inner), [channels]),
        _pad_gates(torch.stack(biases2), [channels]),
    )
