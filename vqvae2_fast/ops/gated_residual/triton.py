"""`gated_residual` in Triton: one pass over memory forward and one backward, in any memory layout.

B, C, H, W as in the operator; P = H·W. All strides are in elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqvae2_fast.ops._triton import configuration, launch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["examples", "gated_residual_backward_triton", "gated_residual_fused_triton"]


@triton.jit
def _entries(C, P, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Image, channel and position of each entry of a block, and whether there is one.

    Entries of an image are numbered in int32; where they lie needs int64.
    """
    blocks = tl.cdiv(C * P, BLOCK)
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    entry = block * BLOCK + tl.arange(0, BLOCK)
    c = entry % C if CHANNELS_LAST else entry // P
    p = entry // C if CHANNELS_LAST else entry % P
    return image.to(tl.int64), c.to(tl.int64), p.to(tl.int64), entry < C * P


@triton.jit
def _place(image, c, p, strides):
    return image * strides[0] + c * strides[1] + p * strides[2]


@triton.jit
def _gate(
    h_ptr,
    condition_ptr,
    image,
    c,
    p,
    inside,
    C,
    h_strides,
    condition_strides,
    CONDITION: tl.constexpr,
):
    """Both halves of h + condition in float32."""
    at = _place(image, c, p, h_strides)
    a = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    half = tl.cast(C, tl.int64)
    b = tl.load(h_ptr + at + half * h_strides[1], mask=inside, other=0.0).to(tl.float32)
    if CONDITION:
        at = _place(image, c, p, condition_strides)
        half_at = at + half * condition_strides[1]
        a += tl.load(condition_ptr + at, mask=inside, other=0.0).to(tl.float32)
        b += tl.load(condition_ptr + half_at, mask=inside, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _gated_residual_fwd_kernel(
    h_ptr,
    x_ptr,
    condition_ptr,
    out_ptr,
    C,
    P,
    h_strides,
    x_strides,
    condition_strides,
    out_strides,
    CONDITION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = a·sigmoid(b) + x; reads 3 values per value written (5 with a condition map)."""
    image, c, p, inside = _entries(C, P, CHANNELS_LAST, BLOCK)
    a, b = _gate(
        h_ptr, condition_ptr, image, c, p, inside, C, h_strides, condition_strides, CONDITION
    )
    x = tl.load(x_ptr + _place(image, c, p, x_strides), mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + _place(image, c, p, out_strides), a * tl.sigmoid(b) + x, mask=inside)


@triton.jit
def _gated_residual_bwd_kernel(
    dout_ptr,
    h_ptr,
    condition_ptr,
    dh_ptr,
    C,
    P,
    dout_strides,
    h_strides,
    condition_strides,
    dh_strides,
    CONDITION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """da = dout·s, db = dout·a·s·(1 − s) with s = sigmoid(b); reads 3 values, writes 2."""
    image, c, p, inside = _entries(C, P, CHANNELS_LAST, BLOCK)
    a, b = _gate(
        h_ptr, condition_ptr, image, c, p, inside, C, h_strides, condition_strides, CONDITION
    )
    dout = tl.load(dout_ptr + _place(image, c, p, dout_strides), mask=inside, other=0.0).to(
        tl.float32
    )
    gate = tl.sigmoid(b)
    dh_at = _place(image, c, p, dh_strides)
    tl.store(dh_ptr + dh_at, dout * gate, mask=inside)
    half_at = dh_at + tl.cast(C, tl.int64) * dh_strides[1]
    tl.store(dh_ptr + half_at, dout * a * gate * (1.0 - gate), mask=inside)


def _flat(tensor: Tensor) -> Tensor:
    """The same values with one stride for all positions of a map: `[B, C, H, W]`."""
    height, width = tensor.shape[2:]
    if height == 1 or width == 1 or tensor.stride(2) == width * tensor.stride(3):
        return tensor
    return tensor.contiguous()


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of image, channel and position."""
    width = tensor.shape[3]
    return tensor.stride(0), tensor.stride(1), tensor.stride(3 if width > 1 else 2)


def _condition(condition: Tensor | None, h: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    if condition is None:
        return h, (0, 0, 0)
    condition = _flat(condition)
    per_image = condition.shape[2:] != h.shape[2:]
    strides = _strides(condition)
    return condition, (strides[0], strides[1], 0) if per_image else strides


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.shape[1] > 1 and tensor.stride(1) == 1


def gated_residual_fused_triton(h: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    h, flat_x, flat_out = _flat(h), _flat(x), _flat(out)
    added, added_strides = _condition(condition, h)
    batch, channels, positions = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    config = configuration("gated_residual", x.device)
    launch(
        _gated_residual_fwd_kernel,
        (batch * triton.cdiv(channels * positions, config["BLOCK"]),),
        h,
        flat_x,
        added,
        flat_out,
        channels,
        positions,
        _strides(h),
        _strides(flat_x),
        added_strides,
        _strides(flat_out),
        CONDITION=condition is not None,
        CHANNELS_LAST=_is_channels_last(flat_out),
        **config,
    )
    return flat_out if flat_out is out else out.copy_(flat_out)


def gated_residual_backward_triton(dout: Tensor, h: Tensor, condition: Tensor | None) -> Tensor:
    dh = torch.empty_like(h)
    dout, flat_h, flat_dh = _flat(dout), _flat(h), _flat(dh)
    added, added_strides = _condition(condition, flat_h)
    batch, channels, positions = dout.shape[0], dout.shape[1], dout.shape[2] * dout.shape[3]
    config = configuration("gated_residual", h.device)
    launch(
        _gated_residual_bwd_kernel,
        (batch * triton.cdiv(channels * positions, config["BLOCK"]),),
        dout,
        flat_h,
        added,
        flat_dh,
        channels,
        positions,
        _strides(dout),
        _strides(flat_h),
        added_strides,
        _strides(flat_dh),
        CONDITION=condition is not None,
        CHANNELS_LAST=_is_channels_last(flat_dh),
        **config,
    )
    return flat_dh if flat_dh is dh else dh.copy_(flat_dh)


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            h = torch.ones(2, 32, 8, 8, dtype=dtype).contiguous(memory_format=layout)
            x = torch.ones(2, 16, 8, 8, dtype=dtype).contiguous(memory_format=layout)
            for condition in (None, h):
                yield gated_residual_fused_triton, (h, x, condition)
                yield gated_residual_backward_triton, (x, h, condition)
