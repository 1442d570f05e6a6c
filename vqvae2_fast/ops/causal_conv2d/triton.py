"""`causal_conv2d` in Triton: products over the live taps only, without a padded or unfolded copy.

An implicit matrix product: M = B·H·W positions, T live taps. Maps are channels last, `[M, C]` in
memory, so that a tap is a fixed distance between rows; weights are packed `[T, C_in, C_out]`. The
live taps of every mask are the first of the kernel in raster order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, convolution_precision, launch, operand_type
from vqvae2_fast.ops.causal_conv2d.op import placement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = [
    "causal_conv2d_fused_triton",
    "causal_conv2d_input_gradient_triton",
    "causal_conv2d_weight_gradient_triton",
    "examples",
]


@triton.jit
def _rows_under_tap(x_ptr, positions, M, H, W, C, c, row, column):
    """Rows of the map `[M, C]` at offset (row, column) from the positions, 0 outside."""
    i = positions // W % H + row
    j = positions % W + column
    inside = (positions < M) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    source = (positions + row * W + column).to(tl.int64)
    return tl.load(
        x_ptr + source[:, None] * C + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0
    )


@triton.jit
def _causal_conv2d_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    M,
    H,
    W,
    C_IN,
    C_OUT,
    T,
    KW,
    TOP,
    LEFT,
    SIGN: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[m] = Σ_t x[m + tap t] · weight[t] + bias; with SIGN −1 the gradient of x from dout.

    2·M·T·C_in·C_out flops; reads x and weight once from memory, and their tiles again from the
    cache.
    """
    # The tiles of one block of positions follow each other, because they read the same rows of x.
    columns = tl.cdiv(C_OUT, BLOCK_N)
    positions = tl.program_id(0) // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    parts = tl.cdiv(C_IN, BLOCK_K)
    for step in range(0, T * parts):
        t = step // parts
        c = step % parts * BLOCK_K + tl.arange(0, BLOCK_K)
        row, column = SIGN * (t // KW - TOP), SIGN * (t % KW - LEFT)
        x = _rows_under_tap(x_ptr, positions, M, H, W, C_IN, c, row, column)
        weight = tl.load(
            weight_ptr + (t * C_IN + c).to(tl.int64)[:, None] * C_OUT + n[None, :],
            mask=(c < C_IN)[:, None] & (n < C_OUT)[None, :],
            other=0.0,
        )
        total = tl.dot(x.to(OPERAND), weight.to(OPERAND), total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias_ptr + n, mask=n < C_OUT, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + positions.to(tl.int64)[:, None] * C_OUT + n[None, :],
        total,
        mask=(positions < M)[:, None] & (n < C_OUT)[None, :],
    )


@triton.jit
def _causal_conv2d_bwd_dweight_kernel(
    dout_ptr,
    x_ptr,
    partial_ptr,
    M,
    H,
    W,
    C_IN,
    C_OUT,
    T,
    KW,
    TOP,
    LEFT,
    share,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial[s, t] = x[under tap t]ᵀ · dout over the s-th share of the positions."""
    columns, rows = tl.cdiv(C_OUT, BLOCK_N), tl.cdiv(C_IN, BLOCK_M)
    tile, part = tl.program_id(0), tl.program_id(1)
    n = tile % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tile // columns % rows * BLOCK_M + tl.arange(0, BLOCK_M)
    t = tile // columns // rows
    row, column = t // KW - TOP, t % KW - LEFT
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = tl.minimum((part + 1) * share, M)
    for first in range(part * share, last, BLOCK_K):
        positions = first + tl.arange(0, BLOCK_K)
        x = _rows_under_tap(x_ptr, positions, last, H, W, C_IN, c, row, column)
        dout = tl.load(
            dout_ptr + positions.to(tl.int64)[:, None] * C_OUT + n[None, :],
            mask=(positions < last)[:, None] & (n < C_OUT)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.trans(x.to(OPERAND)), dout.to(OPERAND), total, input_precision=PRECISION)
    at = (part * T + t).to(tl.int64) * C_IN + c
    tl.store(
        partial_ptr + at[:, None] * C_OUT + n[None, :],
        total,
        mask=(c < C_IN)[:, None] & (n < C_OUT)[None, :],
    )


def _live(mask: str, height: int, width: int) -> tuple[int, int, int]:
    """The number of live taps, and the rows above and columns before the position."""
    top, left, last_row = placement(mask, height, width)
    return (height - 1) * width + last_row, top, left


def _channels_last(x: Tensor) -> Tensor:
    """The map as `[B, H, W, C]`, copied only if it is not contiguous in that order."""
    return x.permute(0, 2, 3, 1).contiguous()


def _precision(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    return {"OPERAND": operand_type(dtype), "PRECISION": convolution_precision(dtype, device)}


def _configuration(kernel: str, x: Tensor) -> dict[str, int]:
    """The configuration of a kernel: float32 takes twice the shared memory and three products."""
    suffix = "" if x.element_size() == 4 else "_half"
    return configuration(f"causal_conv2d_{kernel}{suffix}", x.device)


def _convolve(
    x: Tensor, packed: Tensor, bias: Tensor | None, width: int, top: int, left: int, sign: int
) -> Tensor:
    """x `[B, C_in, H, W]`, packed `[T, C_in, C_out]` -> `[B, C_out, H, W]`, channels last."""
    rows = _channels_last(x)
    batch, image_height, image_width, inputs = rows.shape
    taps, _, outputs = packed.shape
    out = x.new_empty((batch, image_height, image_width, outputs))
    positions = batch * image_height * image_width
    config = _configuration("fwd", x)
    tiles = triton.cdiv(positions, config["BLOCK_M"]) * triton.cdiv(outputs, config["BLOCK_N"])
    launch(
        _causal_conv2d_fwd_kernel,
        (tiles,),
        rows,
        packed,
        packed if bias is None else bias,
        out,
        positions,
        image_height,
        image_width,
        inputs,
        outputs,
        taps,
        width,
        top,
        left,
        SIGN=sign,
        BIAS=bias is not None,
        **_precision(x.dtype, x.device),
        **config,
    )
    return out.permute(0, 3, 1, 2)


def causal_conv2d_fused_triton(x: Tensor, weight: Tensor, bias: Tensor | None, mask: str) -> Tensor:
    height, width = weight.shape[2:]
    taps, top, left = _live(mask, height, width)
    packed = weight.flatten(2)[:, :, :taps].permute(2, 1, 0).contiguous()  # [T, C_in, C_out]
    bias = None if bias is None else bias.contiguous()
    return _convolve(x, packed, bias, width, top, left, 1)


def causal_conv2d_input_gradient_triton(dout: Tensor, weight: Tensor, mask: str) -> Tensor:
    height, width = weight.shape[2:]
    taps, top, left = _live(mask, height, width)
    packed = weight.flatten(2)[:, :, :taps].permute(2, 0, 1).contiguous()  # [T, C_out, C_in]
    return _convolve(dout, packed, None, width, top, left, -1)


def causal_conv2d_weight_gradient_triton(
    dout: Tensor, x: Tensor, height: int, width: int, mask: str
) -> Tensor:
    taps, top, left = _live(mask, height, width)
    rows, dout_rows = _channels_last(x), _channels_last(dout)
    batch, image_height, image_width, inputs = rows.shape
    outputs, positions = dout.shape[1], batch * image_height * image_width
    config = dict(_configuration("bwd_dweight", x))
    tiles = taps * triton.cdiv(inputs, config["BLOCK_M"]) * triton.cdiv(outputs, config["BLOCK_N"])
    # If there are few tiles, the positions are divided too; the division depends only on their
    # number.
    programs, least = config.pop("PROGRAMS"), config.pop("MIN_POSITIONS")
    parts = max(1, min(programs // max(tiles, 1), positions // least))
    share = triton.cdiv(positions, parts * config["BLOCK_K"]) * config["BLOCK_K"]
    partial = x.new_empty((parts, taps, inputs, outputs), dtype=torch.float32)
    launch(
        _causal_conv2d_bwd_dweight_kernel,
        (tiles, parts),
        dout_rows,
        rows,
        partial,
        positions,
        image_height,
        image_width,
        inputs,
        outputs,
        taps,
        width,
        top,
        left,
        share,
        **_precision(x.dtype, x.device),
        **config,
    )
    dweight = x.new_zeros((outputs, inputs, height, width))
    live = partial[0] if parts == 1 else partial.sum(0)  # [T, C_in, C_out]
    dweight.flatten(2)[:, :, :taps].copy_(live.permute(2, 1, 0))
    return dweight


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    for dtype, tf32 in (
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.float16, False),
    ):
        x, weight = torch.ones(2, 32, 8, 8, dtype=dtype), torch.ones(64, 32, 5, 5, dtype=dtype)
        dout = torch.ones(2, 64, 8, 8, dtype=dtype)
        # A launch has the precision that is set when it is made.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            yield causal_conv2d_fused_triton, (x, weight, weight[:, 0, 0, 0], "exclude")
            yield causal_conv2d_input_gradient_triton, (dout, weight, "exclude")
            yield causal_conv2d_weight_gradient_triton, (dout, x, 5, 5, "exclude")
