"""Cases of `causal_conv2d`: every mask, odd and even kernels, maps smaller than the kernel."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, ErrorCase, like, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.causal_conv2d.op import MASKS, causal_conv2d, live_taps, tap_mask

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]


def _case(
    name: str,
    mask: str,
    kernel: tuple[int, int],
    size: tuple[int, int],
    *,
    batch: int = 2,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        x = randn(g, batch, 3, *size, dtype=dtype)
        weight = randn(g, 5, 3, *kernel, dtype=dtype)
        return x, weight, randn(g, 5, dtype=dtype) if bias else None, mask

    return Case(name, make, gradients=(0, 1, 2) if bias else (0, 1), batched=(0,))


CASES = [
    *(_case(f"{mask}_3x3", mask, (3, 3), (6, 7)) for mask in MASKS),
    *(_case(f"{mask}_5x5_small_map", mask, (5, 5), (2, 3)) for mask in MASKS),
    _case("downright_even", "downright", (2, 2), (5, 4)),
    _case("down_even_height", "down", (2, 5), (5, 6)),
    _case("one_row", "include", (1, 3), (3, 3)),
    _case("one_tap", "include", (1, 1), (2, 2)),
    _case("no_live_current_tap", "exclude", (3, 1), (4, 4)),
    _case("no_bias", "exclude", (3, 3), (4, 5), bias=False),
    _case("no_images", "include", (3, 3), (4, 4), batch=0),
    _case("bfloat16", "exclude", (3, 3), (5, 5), dtype=torch.bfloat16),
    _case("float64", "downright", (3, 3), (4, 4), dtype=torch.float64),
]


def _gradient_case(case: Case, of_input: bool) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        x, weight, _, mask = case.make(g)
        dout = randn(g, len(x), len(weight), *x.shape[2:], dtype=x.dtype)
        return (dout, weight, mask) if of_input else (dout, x, *weight.shape[2:], mask)

    return Case(case.name, make)


PRIVATE_CASES = {
    # The public operator's cases cover this one too.
    "causal_conv2d_fused": CASES[:1],
    "causal_conv2d_input_gradient": [_gradient_case(case, True) for case in CASES[:8]],
    "causal_conv2d_weight_gradient": [_gradient_case(case, False) for case in CASES[:8]],
}

_X, _W = torch.zeros(1, 3, 4, 4), torch.zeros(5, 3, 3, 3)
ERRORS = [
    ErrorCase(
        "unknown_mask",
        lambda: causal_conv2d(_X, _W, None, "causal"),
        ValueError,
        "expected mask one of exclude, include, down, downright, got 'causal'",
    ),
    ErrorCase(
        "channels_differ",
        lambda: causal_conv2d(torch.zeros(1, 2, 4, 4), _W, None, "down"),
        ValueError,
        "expected x [B, C_in, H, W] and weight [C_out, C_in, kh, kw]",
    ),
    ErrorCase(
        "even_width",
        lambda: causal_conv2d(_X, torch.zeros(5, 3, 3, 2), None, "include"),
        ValueError,
        "expected an odd kernel width for mask 'include'",
    ),
    ErrorCase(
        "no_rows",
        lambda: causal_conv2d(_X[:, :, :0], _W, None, "down"),
        ValueError,
        "expected H, W, C_out, kh and kw >= 1, got x [1, 3, 0, 4]",
    ),
    ErrorCase(
        "no_taps",
        lambda: causal_conv2d(_X, _W[:, :, :0], None, "down"),
        ValueError,
        "expected H, W, C_out, kh and kw >= 1, got x [1, 3, 4, 4] float32 on cpu, weight [5, 3, 0",
    ),
    ErrorCase(
        "taps_of_an_unknown_mask",
        lambda: live_taps("causal", 3, 3),
        ValueError,
        "expected mask one of exclude, include, down, downright, got 'causal'",
    ),
    ErrorCase(
        "taps_of_an_even_width",
        lambda: tap_mask("exclude", 2, 2),
        ValueError,
        "expected an odd kernel width for mask 'exclude', got 2",
    ),
    ErrorCase(
        "bias_of_another_length",
        lambda: causal_conv2d(_X, _W, torch.zeros(4), "down"),
        ValueError,
        "expected bias [5], got [4]",
    ),
    ErrorCase(
        "bias_elsewhere",
        lambda: causal_conv2d(_X, _W, torch.zeros(5, device="meta"), "include"),
        RuntimeError,
        "expected all tensors on one device, got x on cpu, weight on cpu, bias on meta",
    ),
    ErrorCase(
        "integer_bias",
        lambda: causal_conv2d(_X, _W, torch.zeros(5).long(), "include"),
        TypeError,
        "expected bias of a floating dtype, got [5] int64",
    ),
    ErrorCase(
        "no_map",
        lambda: causal_conv2d(None, _W, None, "down"),  # type: ignore[arg-type]
        TypeError,
        "expected x to be a tensor, got None.",
    ),
    ErrorCase(
        "list_as_bias",
        lambda: causal_conv2d(_X, _W, [0.0] * 5, "down"),  # type: ignore[arg-type]
        TypeError,
        "expected bias to be a tensor, got a list: pass torch.tensor(bias).",
    ),
    ErrorCase(
        "text_as_height",
        lambda: live_taps("down", "3", 3),  # type: ignore[arg-type]
        ValueError,
        "expected kernel_height to be an integer >= 0, got '3'.",
    ),
]

DERIVATIVES = {
    "causal_conv2d": (
        lambda x: ops.causal_conv2d(x, like(x, 1, 3, 4, 3, 3), None, "down"),
        values(0, 2, 4, 3, 3),
    ),
    "causal_conv2d_weight": (
        lambda weight: ops.causal_conv2d(like(weight, 1, 2, 4, 3, 3), weight, None, "include"),
        values(0, 3, 4, 3, 3),
    ),
}
