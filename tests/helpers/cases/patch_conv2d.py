"""Cases of `patch_conv2d`: images, few and odd channels, masks, maps smaller than a kernel."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, randn
from vqvae2_fast.ops.patch_conv2d.op import patch_conv2d_reference

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]

# Kernel, stride, top, left and live taps of the last row.
HALVE, SAME, POINTWISE = (4, 2, 1, 1, 4), (3, 1, 1, 1, 3), (1, 1, 0, 0, 1)
EXCLUDE, INCLUDE, DOWN = (3, 1, 2, 1, 1), (5, 1, 4, 2, 3), (3, 1, 3, 1, 3)
NONE_IN_ITS_ROW, DOWNRIGHT, THIRD = (3, 1, 2, 0, 0), (2, 1, 1, 1, 2), (5, 3, 1, 2, 5)
APART, LEFT = (2, 3, 0, 0, 2), (2, 1, 0, 2, 1)


def arguments(
    g: torch.Generator,
    size: tuple[int, int],
    place: tuple[int, int, int, int, int],
    *,
    transposed: bool = False,
    batch: int = 2,
    channels: int = 3,
    outputs: int = 20,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    """`size` is that of the small map, which has `outputs` channels."""
    kernel, stride, *rest = place
    height, width = size
    weight = randn(g, outputs, channels, kernel, kernel, dtype=dtype)
    if transposed:
        x = randn(g, batch, outputs, height, width, dtype=dtype)
    else:
        x = randn(g, batch, channels, stride * height, stride * width, dtype=dtype)
    added = randn(g, channels if transposed else outputs, dtype=dtype) if bias else None
    return x, weight, added, stride, *rest, transposed


def _case(name: str, *where: Any, **options: Any) -> Case:
    gradients = (0, 1, 2) if options.get("bias", True) else (0, 1)
    return Case(name, lambda g: arguments(g, *where, **options), gradients=gradients, batched=(0,))


_SIZES: tuple[tuple[str, tuple[int, int], tuple[int, int, int, int, int], dict[str, Any]], ...] = (
    ("image", (8, 12), HALVE, {}),
    ("image_of_several_blocks", (40, 33), HALVE, {"outputs": 16}),
    ("rows_longer_than_a_block", (3, 130), HALVE, {"batch": 1, "outputs": 5}),
    ("many_images", (4, 4), HALVE, {"batch": 70}),
    ("single_channels", (5, 3), HALVE, {"channels": 1, "outputs": 1}),
    ("odd_channels", (6, 7), SAME, {"channels": 24, "outputs": 40}),
    ("whole_vectors", (8, 8), SAME, {"channels": 32, "outputs": 48}),
    ("map_smaller_than_the_kernel", (1, 2), INCLUDE, {"channels": 7}),
    ("pointwise", (5, 6), POINTWISE, {"channels": 17}),
    ("exclude", (6, 5), EXCLUDE, {"channels": 9}),
    ("include", (6, 9), INCLUDE, {"channels": 4}),
    ("down", (6, 5), DOWN, {"channels": 8}),
    ("no_tap_in_its_row", (5, 4), NONE_IN_ITS_ROW, {"channels": 8}),
    ("even_kernel", (4, 7), DOWNRIGHT, {"channels": 8}),
    ("third_of_the_size", (4, 5), THIRD, {"channels": 4}),
    ("apart", (4, 5), APART, {"channels": 5}),
    ("left_of_the_position", (4, 5), LEFT, {"channels": 5}),
    ("no_bias", (5, 4), HALVE, {"bias": False}),
    ("no_images", (4, 4), HALVE, {"batch": 0}),
    ("float64", (4, 4), HALVE, {"dtype": torch.float64}),
)

CASES = [
    *(_case(name, size, place, **options) for name, size, place, options in _SIZES),
    *(
        _case(f"transposed_{name}", size, place, transposed=True, **options)
        for name, size, place, options in _SIZES
    ),
]


def _backward_case(
    name: str, size: tuple[int, int], place: Any, *, with_dx: bool = True, **options: Any
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        x, weight, _, *where = arguments(g, size, place, **options)
        like = patch_conv2d_reference(x, weight, None, *where)
        return randn(g, *like.shape, dtype=x.dtype), x, weight, *where, with_dx

    return Case(name, make)


PRIVATE_CASES = {
    "patch_conv2d_backward": [
        _backward_case(f"{way}{name}", size, place, transposed=bool(way), **options)
        for way in ("", "transposed_")
        for name, size, place, options in (
            ("image", (8, 12), HALVE, {"with_dx": False}),
            ("several_blocks", (40, 33), HALVE, {"batch": 3, "outputs": 16}),
            ("masked", (6, 9), INCLUDE, {"channels": 4}),
            ("many_channels", (4, 9), SAME, {"channels": 80, "outputs": 56}),
            ("no_images", (4, 4), HALVE, {"batch": 0}),
            ("float64", (4, 4), HALVE, {"dtype": torch.float64}),
        )
    ]
}

# Not public: the layers check their arguments when they are made.
ERRORS: list[Any] = []
