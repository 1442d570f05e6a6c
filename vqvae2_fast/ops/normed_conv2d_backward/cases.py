"""Cases of `normed_conv2d_backward`."""

from __future__ import annotations

from typing import Any

import torch

from vqvae2_fast.ops._cases import Case, randn
from vqvae2_fast.ops.normed_conv2d.cases import WINOGRAD_LOSS, arguments

__all__ = ["CASES", "ERRORS"]


def _case(name: str, mask: str, kernel: int, size: tuple[int, int], **options: Any) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        x, v, scale, _, *place = arguments(g, mask, kernel, size, **options)
        dy = randn(g, len(x), len(v), *size, dtype=options.get("dtype", torch.float32))
        return dy, x, v, scale, *place

    return Case(name, make, loosening=1 if kernel == 1 else WINOGRAD_LOSS)


CASES = [
    _case("exclude_3x3", "exclude", 3, (6, 7)),
    _case("down_5x5", "down", 5, (9, 5)),
    _case("many_channels", "same", 3, (4, 9), inputs=80, outputs=16),
    _case("not_normed", "include", 5, (6, 6), normed=False),
    _case("after_elu", "include", 3, (6, 7), elu=True),
    _case("after_elu_and_dropout", "exclude", 5, (5, 6), inputs=80, elu=True, dropout_p=0.1),
    _case("pointwise", "same", 1, (5, 7), inputs=13, outputs=35),
    _case("pointwise_dropout", "same", 1, (14, 16), inputs=66, outputs=40, elu=True, dropout_p=0.2),
    _case("no_images", "include", 3, (4, 4), batch=0),
    _case("float64", "exclude", 3, (4, 4), dtype=torch.float64),
]

ERRORS: list[Any] = []
