"""The near-tie rule: whether an engine's codes are those of the reference, apart from rounding.

Two engines that add in different orders can differ in a code whose two best scores lie within the
rounding of the logits, and from there on they draw different maps. So maps are never compared past
their first difference: the engine's codes are fed to the reference, and each code must be the best
there, or as good as the best within a tolerance that the measured rounding sets.

The rule alone would accept an engine that draws correctly from wrong logits, because its tolerance
grows with their error. `assert_same_draw` bounds the error, too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.models.code_checks import as_maps
from vqvae2_fast.modules.contexts import evaluating
from vqvae2_fast.modules.summed_labels import no_class_like
from vqvae2_fast.ops.draw_codes.op import guided
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.request import DrawNoise
from vqvae2_fast.sampling.sampler import teacher_forced_logits
from vqvae2_fast.sampling.settings import DrawSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NearTie", "assert_near_tie", "assert_same_draw", "near_tie", "own_rounding"]

# One code in 10^4 may be a near tie that went the other way.
ALLOWED_SHARE = 1e-4
# Both scores of a comparison carry the error of a logit; twice that allows for what was not
# measured.
TOLERANCE_IN_ERRORS = 4
# What an exact engine's logits and log-probabilities may be off by, in the largest logit. All are
# float32 sums in different orders; with ordinary weights the largest error seen was 9e-7.
EXACT_ERROR = 1e-5
# Extreme weights cancel and leave any error. The engines' was up to ten times the reference's own,
# over the weights that tests/sampling/test_bounds.py makes of the numbers up to 1500.
ROUNDINGS = 16


@dataclass(frozen=True)
class NearTie:
    """What the rule found.

    Args:
        num_drawn: Codes drawn (known ones are not counted).
        num_not_best: Codes that are not the reference's best.
        num_beyond: Codes whose score is further from the best than the tolerance.
        worst_gap: Largest distance of a code's score from the best.
        logit_error: Largest difference of the two engines' (guided) logits on these codes.
        tolerance: τ, 4 × logit_error ÷ temperature.
        raw_error: As logit_error, but before guidance.
        largest_logit: Largest absolute value of the reference's logits before guidance.
    """

    num_drawn: int
    num_not_best: int
    num_beyond: int
    worst_gap: float
    logit_error: float
    tolerance: float
    raw_error: float
    largest_logit: float

    @property
    def holds(self) -> bool:
        return self.num_beyond == 0 and self.num_not_best <= ALLOWED_SHARE * self.num_drawn


def near_tie(
    prior: nn.Module,
    codes: Tensor,
    *,
    engine: str = "auto",
    condition: Sequence[Tensor] | Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    first_sample: int = 0,
    stream: int = 0,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float = 1.0,
    known: Tensor | None = None,
) -> NearTie:
    """Judge codes `[B, H, W]` that `engine` drew with these arguments of `sample_codes`.

    With filters a code at their edge may be in for one engine and out for the other. A drawn code
    counts if it is in when the logits are off by the measured error in its favour. It has to be as
    good as the best of the codes that are in for any such error.
    """
    interface = interface_of(prior)
    settings = DrawSettings(temperature, top_k, top_p, guidance_scale)
    height, width = interface.size
    maps, num_embeddings = as_maps(condition), interface.num_embeddings

    def logits_of(labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """(reference, engine), each `[B·H·W, K]`."""
        with evaluating(prior), torch.no_grad():
            reference = interface.logits(codes, maps, labels).float()
        own = teacher_forced_logits(prior, codes, condition=maps, labels=labels, engine=engine)
        flat = [x.permute(0, 2, 3, 1).reshape(-1, num_embeddings) for x in (reference, own)]
        return flat[0], flat[1]

    pairs = [logits_of(labels)]
    if settings.guided:
        assert labels is not None
        pairs.append(logits_of(no_class_like(labels, interface.num_classes)))
    # Tensors keep a NaN that Python's max() would drop.
    raw_error = torch.stack([(one - other).abs().max() for one, other in pairs]).max()
    largest_logit = torch.stack([one.abs().max() for one, _ in pairs]).max()
    reference, own = pairs[0]
    if settings.guided:
        scale = settings.guidance_scale
        reference, own = (guided(*both, scale) for both in zip(*pairs, strict=True))
    error = float((reference - own).abs().max())
    source = DrawNoise(
        codes.shape[0], width, num_embeddings, codes.device, seed, first_sample, stream, noise
    )
    rows = torch.stack([source.row(i) for i in range(height)], dim=1)  # [B, H, W, K]
    gaps, not_best, tolerance = _gaps(
        settings, reference, rows.flatten(0, 2), codes.flatten(), error
    )
    if known is not None:
        drawn = known.flatten() < 0
        gaps, not_best = gaps[drawn], not_best[drawn]
    return NearTie(
        num_drawn=gaps.numel(),
        num_not_best=int(not_best.sum()),
        num_beyond=int((~(gaps <= tolerance)).sum()),  # a gap of NaN is no tie
        worst_gap=float(gaps.max()) if gaps.numel() else 0.0,
        logit_error=error,
        tolerance=tolerance,
        raw_error=float(raw_error),
        largest_logit=float(largest_logit),
    )


def assert_near_tie(prior: nn.Module, codes: Tensor, **arguments: Any) -> NearTie:
    """`near_tie`, and an AssertionError with its numbers unless the rule holds."""
    result = near_tie(prior, codes, **arguments)
    if not result.holds:
        raise AssertionError(f"near-tie rule broken: {result}")
    return result


def assert_same_draw(
    prior: nn.Module,
    found: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
    *,
    engine: str,
    what: str,
    **arguments: Any,
) -> None:
    """Check that an exact engine drew what the reference draws, apart from rounding.

    The engine's logits must be the reference's. Maps may differ by near ties only, however many. If
    they are equal, so must the log-probabilities be.

    Args:
        found: What `sample_codes` gave with `engine`, these arguments and `return_log_prob=True`.
        expected: What it gave with engine `reference`.
        what: Names the draw in the error.

    Raises:
        AssertionError: With the numbers, if one of them is too large.
    """
    result = near_tie(prior, found[0], engine=engine, **arguments)
    equal = torch.equal(found[0], expected[0])
    log_prob_error = float((found[1] - expected[1]).abs().max()) if equal else 0.0
    errors = torch.tensor([result.raw_error, log_prob_error])
    allowed = EXACT_ERROR * max(1.0, result.largest_logit)
    if not (errors <= allowed).all():
        allowed += ROUNDINGS * own_rounding(
            prior, found[0], arguments.get("condition"), arguments.get("labels")
        )
    if not (errors <= allowed).all() or not (equal or result.num_beyond == 0):
        raise AssertionError(
            f"{what}: engine {engine} does not draw what the reference draws. Its logits are off "
            f"by {result.raw_error:.3g} and its log-probabilities by {log_prob_error:.3g}, where "
            f"{allowed:.3g} is allowed; {result}"
        )


@torch.no_grad()
def own_rounding(
    prior: nn.Module,
    codes: Tensor,
    condition: Sequence[Tensor] | Tensor | None,
    labels: Tensor | None,
) -> float:
    """How far the reference's logits are from those of the same weights in float64."""
    maps = as_maps(condition)
    with evaluating(prior):
        exact = interface_of(copy.deepcopy(prior).double()).logits(codes, maps, labels)
        return float((interface_of(prior).logits(codes, maps, labels) - exact).abs().max())


def _gaps(
    settings: DrawSettings, logits: Tensor, noise: Tensor, codes: Tensor, error: float
) -> tuple[Tensor, Tensor, float]:
    """Per position the gap of the code's score from the best, whether it is not the best, and τ."""
    if settings.temperature == 0:
        tolerance, scores = TOLERANCE_IN_ERRORS * error, logits
        surely = maybe = torch.ones_like(logits, dtype=torch.bool)
    else:
        tolerance = TOLERANCE_IN_ERRORS * error / settings.temperature
        tempered = settings.tempered(logits)
        scores = tempered + noise
        surely, maybe = _inside_filters(settings, tempered, tolerance)
    best = scores.masked_fill(~surely, -torch.inf).amax(dim=1)
    own = scores.masked_fill(~maybe, -torch.inf).gather(1, codes[:, None])[:, 0]
    return (best - own).clamp_min(0), settings.draw(logits, noise) != codes, tolerance


def _inside_filters(settings: DrawSettings, logits: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """Codes that top-k and top-p keep for any error within slack, and codes that they may keep."""
    ordered = logits.sort(dim=1, descending=True).values
    ascending = -ordered
    # For each code, how many are better by more than the slack, and how many may be better.
    better = torch.searchsorted(ascending, -(logits + slack).contiguous())
    maybe_better = torch.searchsorted(ascending, -(logits - slack).contiguous(), right=True) - 1
    top_k = settings.top_k or logits.shape[1]
    surely, maybe = maybe_better < top_k, better < top_k
    if settings.top_p is not None and settings.top_p < 1:
        kept = ordered.masked_fill(
            torch.arange(logits.shape[1], device=logits.device) >= top_k, -torch.inf
        )
        before = torch.nn.functional.pad(kept.softmax(dim=1).cumsum(dim=1), (1, 0))  # [N, K+1]
        surely &= before.gather(1, maybe_better) < settings.top_p - slack
        maybe &= before.gather(1, better) < settings.top_p + slack
    return surely, maybe
