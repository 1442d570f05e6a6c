"""Cases of `stride2_conv2d_backward`."""

from __future__ import annotations

from typing import Any

import torch

from vqvae2_fast.ops._cases import Case, randn
from vqvae2_fast.ops.normed_conv2d.cases import WINOGRAD_LOSS
from vqvae2_fast.ops.stride2_conv2d.cases import arguments
from vqvae2_fast.ops.stride2_conv2d.reference import stride2_conv2d_reference

__all__ = ["CASES", "ERRORS"]


def _case(name: str, size: tuple[int, int], **options: Any) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        x, weight, _, transposed = arguments(g, size, **options)
        like = stride2_conv2d_reference(x, weight, None, transposed)
        return randn(g, *like.shape, dtype=x.dtype), x, weight, transposed

    return Case(name, make, loosening=WINOGRAD_LOSS)


CASES = [
    *(
        _case(f"{way}{name}", size, transposed=bool(way), **options)
        for way in ("", "transposed_")
        for name, size, options in (
            ("cut_tiles", (6, 7), {}),
            ("many_channels", (4, 9), {"channels": 80, "outputs": 16}),
            ("no_images", (4, 4), {"batch": 0}),
            ("float64", (4, 4), {"dtype": torch.float64}),
        )
    ),
]

ERRORS: list[Any] = []
