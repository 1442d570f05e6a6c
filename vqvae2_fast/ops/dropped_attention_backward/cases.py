"""Cases of `dropped_attention_backward`."""

from __future__ import annotations

from typing import Any

import torch

from vqvae2_fast.ops._cases import Case, randn
from vqvae2_fast.ops.dropped_attention.cases import arguments

__all__ = ["CASES", "ERRORS"]


def _case(name: str, *sizes: Any, **options: Any) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        q, k, v, *rest = arguments(g, *sizes, **options)
        return randn(g, *v.shape, dtype=v.dtype), q, k, v, *rest

    return Case(name, make)


CASES = [
    _case("logits", 3, 13, 4, 6, "logits"),
    _case("probabilities", 1, 300, 4, 6, "probabilities"),
    _case("wide_heads", 2, 33, 40, 17, "logits"),
    _case("one_position", 2, 1, 4, 4, "logits"),
    _case("no_images", 2, 5, 4, 4, "logits", batch=0),
    _case("float64", 2, 9, 4, 4, "logits", dtype=torch.float64),
]

ERRORS: list[Any] = []
