"""Cases of `ema_update_`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from helpers.cases import Case, ErrorCase, randn
from vqvae2_fast.ops.ema_update.op import ema_update_

__all__ = ["CASES", "ERRORS"]

Maker = Callable[[torch.Generator], tuple[Any, ...]]


def _step(k: int, d: int, *, decay: float = 0.99, used: float = 1.0) -> Maker:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        counts = torch.randint(1, 20, (k,), generator=g)
        counts *= torch.rand(k, generator=g) < used
        cluster_size = torch.rand(k, generator=g) * 10 + 0.1
        return counts, randn(g, k, d), cluster_size, randn(g, k, d), randn(g, k, d), decay, 1e-5

    return make


CASES = [
    Case("odd_sizes", _step(37, 13), in_place=(2, 3, 4)),
    Case("one_of_each", _step(1, 1), in_place=(2, 3, 4)),
    Case("unused_codes", _step(40, 8, used=0.3), in_place=(2, 3, 4)),
    Case("replaces_everything", _step(12, 4, decay=0.0), in_place=(2, 3, 4)),
]


def _call(k: int = 4, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "counts": torch.ones(k),
        "sums": torch.ones(k, 3),
        "cluster_size": torch.ones(k),
        "embed_avg": torch.ones(k, 3),
        "codebook": torch.ones(k, 3),
    }
    ema_update_(**{**arguments, **changes})


ERRORS = [
    ErrorCase(
        "counts_of_another_length",
        lambda: _call(counts=torch.ones(5)),
        ValueError,
        "expected counts [4] for codebook [4, 3], got [5]",
    ),
    ErrorCase(
        "sums_of_another_shape",
        lambda: _call(sums=torch.ones(4, 2)),
        ValueError,
        "expected sums [4, 3] for codebook [4, 3], got [4, 2]",
    ),
    ErrorCase(
        "decay_above_one", lambda: _call(decay=1.5), ValueError, "expected decay in [0, 1], got 1.5"
    ),
    ErrorCase(
        "negative_epsilon",
        lambda: _call(epsilon=-1.0),
        ValueError,
        "expected epsilon >= 0 and finite, got -1.0",
    ),
    ErrorCase(
        "integer_averages",
        lambda: _call(embed_avg=torch.ones(4, 3).long()),
        TypeError,
        "expected embed_avg of a floating dtype",
    ),
    ErrorCase(
        "list_of_counts",
        lambda: _call(counts=[1.0] * 4),
        TypeError,
        "expected counts to be a tensor, got a list: pass torch.tensor(counts).",
    ),
    ErrorCase(
        "no_codebook",
        lambda: _call(codebook=None),
        TypeError,
        "expected codebook to be a tensor, got None.",
    ),
    ErrorCase(
        "text_as_decay",
        lambda: _call(decay="a"),
        ValueError,
        "expected decay to be a number, got 'a'.",
    ),
    ErrorCase(
        "no_epsilon",
        lambda: _call(epsilon=None),
        ValueError,
        "expected epsilon to be a number, got None.",
    ),
]
