"""Tensors and grids beyond 16 and 31 bits, where the parts of an offset or a grid's axes overflow.

Tests that run a kernel need `TRITON_INTERPRET=1` (see `.ci/triton`)."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.ops import _triton

pytest.importorskip("triton")

from vqvae2_fast.ops.causal_attention.triton import causal_attention_fused_triton
from vqvae2_fast.ops.causal_attention.triton_backward import causal_attention_backward_triton
from vqvae2_fast.ops.causal_conv2d.op import CAUSAL_CONV2D_FUSED
from vqvae2_fast.ops.code_conv2d.op import CODE_CONV2D_FUSED
from vqvae2_fast.ops.code_statistics.triton import code_statistics_triton
from vqvae2_fast.ops.gated_residual.op import GATED_RESIDUAL_BACKWARD, GATED_RESIDUAL_FUSED
from vqvae2_fast.ops.gated_residual.triton import (
    gated_residual_backward_triton,
    gated_residual_fused_triton,
)
from vqvae2_fast.ops.residual_nearest_code.triton import residual_nearest_code_backward_triton
from vqvae2_fast.ops.scalar_quantize.triton import (
    _constants,
    scalar_quantize_backward_triton,
    scalar_quantize_triton,
)
from vqvae2_fast.ops.sign_quantize.triton import sign_quantize_triton

interpreted = pytest.mark.skipif(
    not _triton.INTERPRETED, reason="runs under TRITON_INTERPRET=1, as .ci/triton does"
)
INDICES = torch.arange(5) % 3
MAPS = {"h": (1, 4, 1, 33), "x": (1, 2, 1, 33)}
OPERATORS = {
    "gated_residual": lambda z: (
        gated_residual_fused_triton(z[:4].view(MAPS["h"]), z[1:3].view(MAPS["x"]), None),
        gated_residual_backward_triton(z[1:3].view(MAPS["x"]), z[:4].view(MAPS["h"]), None),
    ),
    "code_statistics": lambda z: code_statistics_triton(z, INDICES, 3),
    "residual_nearest_code": lambda z: residual_nearest_code_backward_triton(
        z, torch.ones(2), z, torch.ones(2, 3, 33), torch.stack([INDICES, INDICES], 1)
    ),
    "scalar_quantize": lambda z: (
        *scalar_quantize_triton(z, [2] * 33),
        scalar_quantize_backward_triton(z, z, [2] * 33),
    ),
    "sign_quantize": lambda z: sign_quantize_triton(z, 1.0),
}


@interpreted
@pytest.mark.parametrize("name", OPERATORS)
def test_columns_may_lie_far_apart(name) -> None:
    """A transposed input of 8.8 GB, of which only 33 pages are touched."""
    far = torch.empty(33 * 2**26).as_strided((5, 33), (1, 2**26))
    far.copy_(torch.randn(5, 33, generator=torch.Generator().manual_seed(0)))
    found, expected = OPERATORS[name](far), OPERATORS[name](far.contiguous())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def attention(batch: int, heads: int, length: int) -> None:
    q = torch.empty(batch, heads, length, 16, dtype=torch.bfloat16, device="meta")
    seed, log_sum = torch.empty((), dtype=torch.int64), q[..., 0].float()
    causal_attention_fused_triton(q, q, q, 0.1, seed)
    causal_attention_backward_triton(q, q, q, q, q, log_sum, 0.1, seed)


def gated_residual(batch: int, channels: int, side: int) -> None:
    h = torch.empty(batch, 2 * channels, side, side, device="meta")
    x = torch.empty(batch, channels, side, side, device="meta")
    gated_residual_fused_triton(h, x, None)
    gated_residual_backward_triton(x, h, None)


@pytest.mark.parametrize(
    ("launched", "sizes"),
    [
        (attention, (8192, 8, 64)),
        (gated_residual, (1, 256, 600)),
        (gated_residual, (70_000, 16, 4)),
    ],
)
def test_a_grid_is_long_in_its_first_axis_only(launched, sizes) -> None:
    """CUDA allows 2³¹ − 1 programs there, and 65,535 in the others."""
    with _triton.recording("sm_90") as launches:
        launched(*sizes)
    assert launches
    for launch in launches:
        assert all(programs < 2**16 for programs in launch.grid[1:]), launch.kernel


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


COUNTED = {
    "gated_residual": lambda side: GATED_RESIDUAL_FUSED.why_not(
        meta(1, 2, 2**15, side), meta(1, 1, 2**15, side)
    ),
    "gated_residual_backward": lambda side: GATED_RESIDUAL_BACKWARD.why_not(
        meta(1, 1, 2**15, side), meta(1, 2, 2**15, side), None
    ),
    "causal_conv2d": lambda side: CAUSAL_CONV2D_FUSED.why_not(
        meta(2, 1, 2**15, side), meta(1, 1, 3, 3)
    ),
    "code_conv2d": lambda side: CODE_CONV2D_FUSED.why_not(
        meta(2, 2**15, side, dtype=torch.int64), meta(1, 4, 1)
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_int32_cannot_count_with_a_block_more_is_left_to_the_reference(name) -> None:
    assert COUNTED[name](2**15 - 2) is None
    assert "2147418112 " in COUNTED[name](2**15 - 1)  # 2³¹ − 2¹⁶


def test_constants_of_a_grid_stay_on_the_device_for_graphs_that_read_them() -> None:
    first = _constants((3, 3), False, False, torch.device("cpu"))
    for size in range(4, 80):
        _constants((size,), False, False, torch.device("cpu"))
    assert _constants((3, 3), False, False, torch.device("cpu")) is first
