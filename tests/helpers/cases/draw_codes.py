"""Cases of `draw_codes`: every filter, ties, known codes, noise from `gumbel_noise`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helpers.cases import Case, ErrorCase, randn
from vqvae2_fast import ops
from vqvae2_fast.ops.draw_codes.op import draw_codes
from vqvae2_fast.ops.gumbel_noise.op import gumbel_noise_reference

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CASES", "ERRORS"]


def _rounded(logits: torch.Tensor) -> torch.Tensor:
    """Values rounded to quarters, with zeros of both signs, so that there are many ties."""
    return (logits * 4).round() / 4


def _zeros_and_ones(logits: torch.Tensor) -> torch.Tensor:
    """Zeros of both signs, and some ones."""
    return torch.where(logits > 1, 1.0, logits * 0)


def _case(
    name: str,
    batch: int,
    num_embeddings: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float | None = None,
    known: bool = False,
    log_prob: bool = True,
    takes_last: bool = False,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda v: 2 * v,
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        logits = change(randn(g, batch, num_embeddings))
        without = None if guidance is None else change(randn(g, batch, num_embeddings))
        samples = torch.arange(batch)
        noise = gumbel_noise_reference(samples, torch.tensor([5]), num_embeddings, 3, 1)[:, 0]
        if takes_last:
            # Noise falls with the score, so that the last code that the filters keep is drawn: an
            # error at the edge would show.
            noise = 0.01 * torch.arange(num_embeddings) - 4 * logits
        kept = torch.arange(batch) % (num_embeddings + 1) - 1 if known else None
        return (
            logits,
            without,
            noise,
            kept,
            temperature,
            top_k,
            top_p,
            1.0 if guidance is None else guidance,
            log_prob,
        )

    return Case(
        name,
        make,
        batched=(0, *((1,) if guidance is not None else ()), 2, *((3,) if known else ()))
        if log_prob
        else (),
    )


# Few rows: Triton's interpreter takes tens of milliseconds to sort one.
CASES = [
    _case("odd_sizes", 2, 29, top_k=20, top_p=0.9, temperature=0.8, guidance=1.7, known=True),
    _case("no_filter", 3, 100),
    _case("no_log_prob", 2, 31, temperature=3.5, log_prob=False),
    _case("no_rows", 0, 8, top_p=0.5),
    _case("whole_block", 4, 32, top_p=0.95, takes_last=True),
    _case("one_code", 2, 1, top_k=1, top_p=0.5),
    _case("top_k_of_one", 3, 13, top_k=1, takes_last=True),
    _case("top_k_beyond_k", 2, 13, top_k=50),
    _case("least_top_p", 3, 13, top_p=1e-6, takes_last=True),
    _case("ties", 8, 30, top_k=7, top_p=0.8, change=_rounded, takes_last=True),
    _case("zeros_of_both_signs", 3, 15, top_k=9, change=_zeros_and_ones, takes_last=True),
    _case("guided", 6, 20, temperature=0.7, guidance=3.0),
    _case("greedy_ties", 8, 50, temperature=0.0, top_k=3, change=_rounded),
    _case("guided_greedy", 3, 50, temperature=0.0, guidance=-0.5),
    _case("forbidden_codes", 3, 15, top_k=12, change=lambda v: v.masked_fill(v < 0, -torch.inf)),
    _case(
        "all_forbidden",
        2,
        9,
        top_k=4,
        log_prob=False,
        change=lambda v: torch.full_like(v, -torch.inf),
    ),
]

_L = torch.zeros(2, 4)
ERRORS = [
    ErrorCase(
        "one_row",
        lambda: draw_codes(_L[0], _L[0]),
        ValueError,
        "expected logits [B, K] with K >= 1, got [4] float32",
    ),
    ErrorCase(
        "noise_of_another_size",
        lambda: draw_codes(_L, _L[:, :3]),
        ValueError,
        "expected noise [2, 4] as logits, got [2, 3]",
    ),
    ErrorCase(
        "unconditional_of_another_size",
        lambda: draw_codes(_L, _L, unconditional=_L[:1]),
        ValueError,
        "expected unconditional [2, 4] as logits, got [1, 4]",
    ),
    ErrorCase(
        "float_known",
        lambda: draw_codes(_L, _L, known=_L[:, 0]),
        TypeError,
        "expected known int64, got [2] float32",
    ),
    ErrorCase(
        "known_of_another_size",
        lambda: draw_codes(_L, _L, known=torch.zeros(3).long()),
        ValueError,
        "expected known [2], got [3]",
    ),
    ErrorCase(
        "known_beyond_the_codes",
        lambda: draw_codes(_L, _L, known=torch.tensor([0, 4])),
        RuntimeError,
        "expected known codes in -1..3, got one outside.",
    ),
    ErrorCase(
        "known_below",
        lambda: draw_codes(_L, _L, known=torch.tensor([-2, 0])),
        RuntimeError,
        "expected known codes in -1..3, got one outside.",
    ),
    ErrorCase(
        "integer_logits",
        lambda: draw_codes(_L.long(), _L),
        TypeError,
        "expected logits of a floating dtype",
    ),
    ErrorCase(
        "negative_temperature",
        lambda: draw_codes(_L, _L, temperature=-1.0),
        ValueError,
        "expected temperature to be 0, which takes the best code, or from 1e-15 to",
    ),
    ErrorCase(
        "guidance_away_from_nothing",
        lambda: draw_codes(_L, _L, guidance_scale=3.0),
        ValueError,
        "expected unconditional logits with guidance_scale=3.0, got None",
    ),
    ErrorCase(
        "top_p_of_zero",
        lambda: draw_codes(_L, _L, top_p=0.0),
        ValueError,
        "expected top_p to be None or from 1e-15 to 1, got 0.0",
    ),
    ErrorCase(
        "no_noise",
        lambda: draw_codes(_L, None),  # type: ignore[arg-type]
        TypeError,
        "expected noise to be a tensor, got None.",
    ),
    ErrorCase(
        "list_of_known",
        lambda: draw_codes(_L, _L, known=[0, 1]),  # type: ignore[arg-type]
        TypeError,
        "expected known to be a tensor, got a list: pass torch.tensor(known).",
    ),
    ErrorCase(
        "text_as_temperature",
        lambda: draw_codes(_L, _L, temperature="hot"),  # type: ignore[arg-type]
        ValueError,
        "expected temperature to be a number, got 'hot'.",
    ),
]

CONSTANTS = {"draw_codes": lambda z: ops.draw_codes(z, torch.zeros_like(z))[1]}
