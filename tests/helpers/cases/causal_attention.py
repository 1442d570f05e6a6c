"""Cases of `causal_attention`."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, ErrorCase, like, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.causal_attention.op import causal_attention, causal_attention_fused_reference

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]


def _case(
    name: str,
    b: int,
    heads: int,
    length: int,
    d: int,
    dv: int,
    *,
    dropout_p: float = 0.0,
    dropout_on: str = "logits",
    seed: int | tuple[int, int] = 7,
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        q = randn(g, b, heads, length, d, dtype=dtype)
        k = randn(g, b, heads, length, d, dtype=dtype)
        v = randn(g, b, heads, length, dv, dtype=dtype)
        return q, k, v, dropout_p, dropout_on, torch.tensor(seed) if dropout_p else None

    return Case(name, make, gradients=(0, 1, 2), batched=() if dropout_p else (0, 1, 2))


CASES = [
    _case("odd_sizes", 2, 3, 11, 7, 5),
    _case("one_position", 2, 2, 1, 4, 4),
    _case("two_positions", 1, 1, 2, 3, 3),
    _case("no_images", 0, 2, 5, 4, 4),
    _case("map_8x8", 2, 4, 64, 8, 8),
    _case("logit_dropout", 2, 3, 13, 4, 6, dropout_p=0.3),
    _case("logit_dropout_part_of_a_batch", 2, 3, 13, 4, 6, dropout_p=0.3, seed=(7, 5)),
    _case("logit_dropout_long", 1, 2, 67, 20, 33, dropout_p=0.1),
    _case("logit_dropout_one_position", 1, 1, 1, 4, 4, dropout_p=0.5),
    _case("logit_dropout_bfloat16", 1, 2, 18, 8, 8, dropout_p=0.2, dtype=torch.bfloat16),
    _case("logit_dropout_float16", 1, 2, 18, 8, 16, dropout_p=0.2, dtype=torch.float16),
    _case("probability_dropout", 2, 3, 13, 4, 6, dropout_p=0.3, dropout_on="probabilities"),
    _case("bfloat16", 2, 2, 16, 8, 8, dtype=torch.bfloat16),
    _case("float64", 1, 2, 9, 4, 4, dtype=torch.float64),
]


def _dropped_case(
    name: str,
    heads: int,
    length: int,
    d: int,
    dv: int,
    dropout_on: str = "logits",
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Cases of `dropped_attention`: q, k, v, dropout_p, dropout_on, seed."""

    def make(g: torch.Generator) -> tuple[Any, ...]:
        q, k = (randn(g, batch, heads, length, d, dtype=dtype) for _ in range(2))
        v = randn(g, batch, heads, length, dv, dtype=dtype)
        return q, k, v, 0.3, dropout_on, torch.tensor(7)

    return Case(name, make, gradients=(0, 1, 2))


def _dropped_backward_case(case: Case) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        q, k, v, *rest = case.make(g)
        return randn(g, *v.shape, dtype=v.dtype), q, k, v, *rest

    return Case(case.name, make)


def _fused_case(case: Case, backward: bool) -> Case:
    """Cases of the Triton kernels, which drop only logits and save what the forward computed."""

    def make(g: torch.Generator) -> tuple[Any, ...]:
        q, k, v, p, _, seed = case.make(g)
        if not backward:
            return q, k, v, p, seed
        out, log_sum = causal_attention_fused_reference(q, k, v, p, seed)
        return randn(g, *v.shape, dtype=v.dtype), q, k, v, out, log_sum, p, seed

    return Case(case.name, make, gradients=() if backward else (0, 1, 2))


_DROPPED = [
    _dropped_case("logits", 3, 13, 4, 6),
    _dropped_case("wide_heads", 2, 33, 40, 17),
    _dropped_case("one_position", 2, 1, 4, 4),
    _dropped_case("no_images", 2, 5, 4, 4, batch=0),
    _dropped_case("float64", 2, 9, 4, 4, dtype=torch.float64),
    _dropped_case("probabilities", 3, 13, 4, 6, "probabilities"),
    _dropped_case("many_tiles", 1, 300, 4, 6, "probabilities"),
]
PRIVATE_CASES = {
    "dropped_attention": _DROPPED,
    "dropped_attention_backward": [_dropped_backward_case(case) for case in _DROPPED],
    "causal_attention_fused": [_fused_case(case, False) for case in _DROPPED[:1]],
    "causal_attention_backward": [_fused_case(case, True) for case in _DROPPED[:4]],
}

_Q = torch.zeros(1, 2, 5, 4)
ERRORS = [
    ErrorCase(
        "lengths_differ",
        lambda: causal_attention(_Q, torch.zeros(1, 2, 6, 4), _Q),
        ValueError,
        "expected q, k [B, heads, L, d] and v [B, heads, L, dv]",
    ),
    ErrorCase(
        "several_dtypes",
        lambda: causal_attention(_Q.half(), _Q.bfloat16(), _Q.half(), 0.5, seed=torch.tensor(1)),
        TypeError,
        "expected q, k and v of one dtype, got float16, bfloat16 and float16",
    ),
    ErrorCase(
        "dropout_without_seed",
        lambda: causal_attention(_Q, _Q, _Q, 0.1),
        ValueError,
        "dropout needs a seed",
    ),
    ErrorCase(
        "seed_elsewhere",
        lambda: causal_attention(_Q, _Q, _Q, 0.1, seed=torch.zeros((), device="meta").long()),
        RuntimeError,
        "expected all tensors on one device, got q on cpu, seed on meta",
    ),
    ErrorCase(
        "dropout_of_one",
        lambda: causal_attention(_Q, _Q, _Q, 1.0),
        ValueError,
        "expected dropout_p in [0, 1), got 1.0",
    ),
    ErrorCase(
        "unknown_dropout_on",
        lambda: causal_attention(_Q, _Q, _Q, 0.1, "values"),
        ValueError,
        "expected dropout_on 'logits' or 'probabilities', got 'values'",
    ),
    ErrorCase(
        "list_of_keys",
        lambda: causal_attention(_Q, [1.0], _Q),  # type: ignore[arg-type]
        TypeError,
        "expected k to be a tensor, got a list: pass torch.tensor(k).",
    ),
    ErrorCase(
        "text_as_dropout",
        lambda: causal_attention(_Q, _Q, _Q, "a"),  # type: ignore[arg-type]
        ValueError,
        "expected dropout_p to be a number, got 'a'.",
    ),
]


def attention(q, dropout_p, dropout_on):
    k, v = like(q, 1, *q.shape), like(q, 2, *q.shape)
    return ops.causal_attention(q, k, v, dropout_p, dropout_on, torch.tensor(7))


DERIVATIVES = {
    "causal_attention": (lambda q: attention(q, 0.0, "logits"), values(0, 1, 2, 5, 4)),
    "causal_attention_logits": (lambda q: attention(q, 0.3, "logits"), values(0, 1, 2, 5, 4)),
    "causal_attention_probabilities": (
        lambda q: attention(q, 0.3, "probabilities"),
        values(0, 1, 2, 5, 4),
    ),
    "causal_attention_keys": (
        lambda k: ops.causal_attention(
            like(k, 1, *k.shape), k, like(k, 2, *k.shape), 0.3, "logits", torch.tensor(7)
        ),
        values(0, 1, 2, 5, 4),
    ),
}
