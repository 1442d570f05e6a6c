"""Cases of `dropped_attention`: those of `causal_attention` with dropout, and many tiles."""

from __future__ import annotations

from typing import Any

import torch

from vqvae2_fast.ops._cases import Case, randn

__all__ = ["CASES", "ERRORS", "arguments"]


def arguments(
    g: torch.Generator,
    heads: int,
    length: int,
    d: int,
    dv: int,
    dropout_on: str,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
) -> tuple[Any, ...]:
    q, k = (randn(g, batch, heads, length, d, dtype=dtype) for _ in range(2))
    v = randn(g, batch, heads, length, dv, dtype=dtype)
    return q, k, v, 0.3, dropout_on, torch.tensor(7)


def _case(name: str, *sizes: Any, **options: Any) -> Case:
    return Case(name, lambda g: arguments(g, *sizes, **options), gradients=(0, 1, 2))


CASES = [
    _case("logits", 3, 13, 4, 6, "logits"),
    _case("probabilities", 3, 13, 4, 6, "probabilities"),
    _case("many_tiles", 1, 300, 4, 4, "probabilities"),
    _case("wide_heads", 2, 33, 40, 17, "logits"),
    _case("one_position", 2, 1, 4, 4, "logits"),
    _case("no_images", 2, 5, 4, 4, "logits", batch=0),
    _case("float64", 2, 9, 4, 4, "logits", dtype=torch.float64),
]

# `causal_attention` checks what it passes on.
ERRORS: list[Any] = []
