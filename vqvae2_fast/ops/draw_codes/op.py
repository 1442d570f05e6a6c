"""`draw_codes`: from logits and noise to codes, by the rule of every sampling engine."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import (
    assert_inside,
    check_floating,
    check_int64,
    check_same_device,
    checked_integer,
    described,
    other_dtype,
)
from vqvae2_fast.ops._registry import register, transforms_are_active

__all__ = [
    "DRAW_CODES",
    "check_rule",
    "draw_codes",
    "draw_codes_reference",
    "drawn",
    "filtered",
    "guided",
    "share_kept",
    "tempered",
]


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + s·(c − u)."""
    return (conditional - unconditional) * scale + unconditional


def tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Tempered logits `[B, K]` with −∞ for codes that the filters leave out; top_k 0 keeps all."""
    top_k = min(top_k or logits.shape[1], logits.shape[1])
    if top_k == logits.shape[1] and top_p == 1.0:
        return logits
    # The sort is stable: equal logits stay in the order of their indices.
    ordered, codes = torch.sort(logits, dim=1, descending=True, stable=True)
    ordered[:, top_k:] = -torch.inf
    if top_p < 1.0:
        cumulative = torch.softmax(ordered, dim=1).cumsum(dim=1)
        # A code is kept if those before it have less than p in all; the first is always kept.
        ordered[:, 1:].masked_fill_(cumulative[:, :-1] >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(1, codes, ordered)


def drawn(scores: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Codes int64 `[B]` of guided logits."""
    if temperature > 0:
        scores = filtered(tempered(scores, temperature), top_k, top_p) + noise
    return torch.argmax(scores, dim=1)


def draw_codes_reference(
    logits: Tensor,
    unconditional: Tensor | None,
    noise: Tensor,
    known: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    guidance_scale: float,
    log_prob: bool,
) -> tuple[Tensor, Tensor]:
    scores = logits if unconditional is None else guided(logits, unconditional, guidance_scale)
    codes = drawn(scores, noise, temperature, top_k, top_p)
    if known is not None:
        codes = torch.where(known >= 0, known, codes)
    if not log_prob:
        return codes, logits.new_empty(0)
    return codes, logits.log_softmax(dim=1).gather(1, codes[:, None])[:, 0]


# With more codes the sort of one row takes more registers than a block of threads has.
_MOST_CODES = 1 << 13
# Bounds of temperature, guidance and top_p; and of top_k, which is an int64.
_LARGEST, _SMALLEST, _MOST_KEPT = 1e15, 1e-15, 2**63 - 1


def _fake(
    logits: Tensor,
    unconditional: Tensor | None,
    noise: Tensor,
    known: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    guidance_scale: float,
    log_prob: bool,
) -> tuple[Tensor, Tensor]:
    codes = logits.new_empty(logits.shape[0], dtype=torch.int64)
    return codes, logits.new_empty(logits.shape[0] if log_prob else 0)


def _why_not(
    logits: Tensor, unconditional: Tensor | None = None, noise: Tensor | None = None, *_: Any
) -> str | None:
    if logits.shape[1] > _MOST_CODES:
        return f"{logits.shape[1]} codes, more than {_MOST_CODES}"
    floats = {"logits": logits, "noise": noise, "unconditional_logits": unconditional}
    return other_dtype((torch.float32,), **floats)


DRAW_CODES = register(
    "draw_codes",
    "(Tensor logits, Tensor? unconditional, Tensor noise, Tensor? known, float temperature, "
    "int top_k, float top_p, float guidance_scale, bool log_prob) -> (Tensor codes, Tensor taken)",
    reference=draw_codes_reference,
    fake=_fake,
    owners={"cuda": "triton"},
    why_not=_why_not,
)


def check_rule(
    temperature: float, top_k: int | None, top_p: float | None, guidance_scale: float
) -> None:
    """Raise ValueError for a value that is out of range or not a number.

    The bounds keep all scores finite in float32, for logits up to 1e6: beyond them the result would
    depend on how an engine rounds and orders its steps.
    """
    numbers = {"temperature": temperature, "guidance_scale": guidance_scale}
    if top_p is not None:
        numbers["top_p"] = top_p
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"expected {name} to be a number, got {value!r}.")
    if not (temperature == 0 or _SMALLEST <= temperature <= _LARGEST):
        raise ValueError(
            f"expected temperature to be 0, which takes the best code, or from {_SMALLEST:g} "
            f"to {_LARGEST:g}, got {temperature}."
        )
    if isinstance(top_k, Integral) and top_k == 0:
        raise ValueError(
            f"expected top_k to be an integer >= 1, or None for no limit, got {top_k!r}."
        )
    if top_k is not None:
        checked_integer("top_k", top_k, 1, _MOST_KEPT)
    if top_p is not None and not _SMALLEST <= top_p <= 1:
        raise ValueError(f"expected top_p to be None or from {_SMALLEST:g} to 1, got {top_p}.")
    if not abs(guidance_scale) <= _LARGEST:
        raise ValueError(
            f"expected guidance_scale to be from {-_LARGEST:g} to {_LARGEST:g}, got "
            f"{guidance_scale}."
        )


def share_kept(top_p: float | None) -> float:
    """`top_p` for the kernels, which round it to float32; 1 if nothing is to be left out."""
    return 1.0 if top_p is None or top_p >= 1 - 2.0**-25 else top_p


def draw_codes(
    logits: Tensor,
    noise: Tensor,
    *,
    unconditional: Tensor | None = None,
    known: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The code of each row and its log-probability under the raw logits.

    logits → u + s·(logits − u) → ÷ temperature → top-k → top-p → + noise → argmax, lowest index on
    ties. With standard Gumbel noise (`gumbel_noise`) this draws from the softmax.

    Args:
        logits: `[B, K]`, floating, with the class if there is guidance.
        noise: `[B, K]`.
        unconditional: u, the logits without the class, `[B, K]`; None for no guidance.
        known: int64 `[B]`: codes to keep, −1 where one is drawn.
        temperature: 0 takes the best code, whatever the noise and the filters.
        top_k: Keep the k best codes by (logit descending, index ascending); None for all.
        top_p: Of what is left, in that order, keep the shortest prefix whose cumulative float32
            probability is at least p, one code at least; None for all.
        guidance_scale: s (classifier-free guidance, https://arxiv.org/abs/2207.12598).

    Returns:
        codes int64 `[B]`, in 0..K−1 whatever the logits (or the known code), and their
        log-probability `[B]`: that of the logits as given, before guidance, temperature and
        filters. The arithmetic and the log-probability are in float32, or in float64 for logits in
        float64. No gradient flows to either.

    Raises:
        ValueError: Shapes that do not fit, no codes, a value out of range, or guidance without
            unconditional.
        TypeError: Not a tensor, a dtype that is not floating, or known not int64.
        RuntimeError: Tensors on different devices, or a known code outside −1..K−1.
    """
    check_rule(temperature, top_k, top_p, guidance_scale)
    if unconditional is None and guidance_scale != 1:
        raise ValueError(
            f"expected unconditional logits with guidance_scale={guidance_scale}, got None."
        )
    floats = {"logits": logits, "noise": noise}
    if unconditional is not None:
        floats["unconditional"] = unconditional
    check_floating(**floats)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"expected logits [B, K] with K >= 1, got {described(logits)}.")
    for name, tensor in floats.items():
        if tensor.shape != logits.shape:
            raise ValueError(
                f"expected {name} {list(logits.shape)} as logits, got {described(tensor)}."
            )
    if known is not None:
        check_int64("known", known)
        if known.shape != logits.shape[:1]:
            raise ValueError(f"expected known [{logits.shape[0]}], got {described(known)}.")
        floats["known"] = known
    check_same_device(**floats)
    if known is not None and not transforms_are_active():  # vmap has no rule for assertions
        assert_inside(known, -1, logits.shape[1], name="known codes")
    # Half precision holds neither tempered logits nor cumulative probabilities.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits, noise = logits.detach().to(dtype), noise.detach().to(dtype)
    unconditional = None if unconditional is None else unconditional.detach().to(dtype)
    rule = (temperature, top_k or 0, share_kept(top_p), guidance_scale)
    return DRAW_CODES(logits, unconditional, noise, known, *rule, True)
