"""Cases of `stride2_conv2d`: direct and transposed, with tiles that the map's edges cut."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, like, randn, values
from helpers.cases.normed_conv2d import WINOGRAD_LOSS
from vqvae2_fast.ops.stride2_conv2d.op import stride2_conv2d, stride2_conv2d_reference

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]


def arguments(
    g: torch.Generator,
    size: tuple[int, int],
    *,
    transposed: bool = False,
    batch: int = 2,
    channels: int = 16,
    outputs: int = 32,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    """`size` is that of the small map, which has `outputs` channels."""
    height, width = size
    weight = randn(g, outputs, channels, 4, 4, dtype=dtype)
    if transposed:
        x = randn(g, batch, outputs, height, width, dtype=dtype)
    else:
        x = randn(g, batch, channels, 2 * height, 2 * width, dtype=dtype)
    added = randn(g, channels if transposed else outputs, dtype=dtype) if bias else None
    return x, weight, added, transposed


def _case(name: str, *sizes: Any, **options: Any) -> Case:
    gradients = (0, 1, 2) if options.get("bias", True) else (0, 1)
    return Case(
        name,
        lambda g: arguments(g, *sizes, **options),
        gradients=gradients,
        batched=(0,),
        loosening=WINOGRAD_LOSS,
    )


CASES = [
    *(
        _case(f"{way}{name}", size, transposed=bool(way), **options)
        for way in ("", "transposed_")
        for name, size, options in (
            ("cut_tiles", (6, 7), {}),
            ("smaller_than_a_tile", (2, 3), {"channels": 48}),
            ("whole_tiles", (8, 4), {"channels": 80, "outputs": 16}),
            ("many_tiles", (30, 32), {"batch": 3, "channels": 48, "outputs": 16}),
            ("no_bias", (5, 4), {"bias": False}),
            ("no_images", (4, 4), {"batch": 0}),
            ("odd_channels", (4, 4), {"channels": 3, "outputs": 5}),
            ("float64", (4, 4), {"dtype": torch.float64}),
        )
    ),
]


def _backward_case(name: str, size: tuple[int, int], **options: Any) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        x, weight, _, transposed = arguments(g, size, **options)
        like = stride2_conv2d_reference(x, weight, None, transposed)
        return randn(g, *like.shape, dtype=x.dtype), x, weight, transposed

    return Case(name, make, loosening=WINOGRAD_LOSS)


PRIVATE_CASES = {
    "stride2_conv2d_backward": [
        *(
            _backward_case(f"{way}{name}", size, transposed=bool(way), **options)
            for way in ("", "transposed_")
            for name, size, options in (
                ("cut_tiles", (6, 7), {}),
                ("many_channels", (4, 9), {"channels": 80, "outputs": 16}),
                ("no_images", (4, 4), {"batch": 0}),
                ("float64", (4, 4), {"dtype": torch.float64}),
            )
        ),
    ]
}

# Not public: the layers check their arguments when they are made.
ERRORS: list[Any] = []

DERIVATIVES = {
    "stride2_conv2d": (
        lambda x: stride2_conv2d(x, like(x, 1, 16, 16, 4, 4), None),
        values(0, 2, 16, 4, 4),
    ),
    "stride2_conv2d_transposed": (
        lambda x: stride2_conv2d(x, like(x, 1, 16, 16, 4, 4), None, transposed=True),
        values(0, 2, 16, 3, 3),
    ),
}
