"""Calibration of a prior for engines of w8a8: the ranges of what its matrices are given."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.modules.evaluating import evaluating
from vqvae2_fast.sampling.plan_network import plan_logits
from vqvae2_fast.sampling.prior import interface_of, plan_of
from vqvae2_fast.sampling.quantized import Calibration, InputRanges
from vqvae2_fast.sampling.sampler import check_codes, checked_context

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vqvae2_fast.models.prior import Prior

__all__ = ["calibrate"]


def calibrate(
    prior: Prior,
    batches: Iterable[tuple[Tensor, Sequence[Tensor] | Tensor | None, Tensor | None]],
    *,
    margin: float = 1.0,
) -> None:
    """Measure the ranges of a prior's activations, for engines `cpu_w8a8` and `cuda_w8a8`.

    They are kept as `prior.calibration` and saved with the prior. A few hundred code maps of the
    training set suffice.

    Args:
        batches: (codes int64 `[B, H, W]`, condition, labels) as `score_codes` takes them.
        margin: How much larger values than those seen are represented, at least 1.

    Raises:
        ValueError: No batch, a margin below 1 or infinite, or codes that do not fit the prior.
        TypeError: Codes or labels not int64.
    """
    if not 1 <= margin < math.inf:
        raise ValueError(f"calibrate: expected margin >= 1 and finite, got {margin}.")
    interface, digest = interface_of(prior), hashlib.sha256()
    largest: dict[str, dict[int, Tensor]] = {}

    def measured(name: str, n: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        found = x.abs().flatten(0, -2).amax(0)
        own = largest.setdefault(name, {})
        own[n] = torch.maximum(own[n], found) if n in own else found
        return x.flatten(-2) @ weight + bias

    with evaluating(prior), torch.inference_mode():
        plan = plan_of(prior, interface)
        for codes, condition, labels in batches:
            size = codes.shape[0] if codes.ndim == 3 else 1
            check_codes("calibrate", "codes", codes, interface, size, lowest=0)
            maps, numbers = checked_context(
                "calibrate", interface, size, condition, labels, plan.device
            )
            if not size:
                continue
            plan_logits(plan, codes.to(plan.device), maps, numbers, measured, exact=False)
            for tensor in (codes, *maps, *([] if numbers is None else [numbers])):
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
    if not largest:
        raise ValueError("calibrate: expected at least one batch of code maps, got none.")
    stacked = {
        name: torch.stack([own[n] for n in sorted(own)]).clone() for name, own in largest.items()
    }
    prior.calibration = Calibration(
        InputRanges(stacked, float(margin)), weights_hash(prior), digest.hexdigest()
    )
