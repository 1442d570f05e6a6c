"""A description of how engine `cuda` would draw from a prior, made without a card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.models.prior import make_prior
from vqvae2_fast.sampling.engines.cuda import plan_values
from vqvae2_fast.sampling.engines.cuda_card import PRECISIONS, THREADS, Card
from vqvae2_fast.sampling.engines.cuda_library import native_library
from vqvae2_fast.sampling.prior import interface_of

if TYPE_CHECKING:
    from vqvae2_fast.models.prior import PriorConfig

__all__ = ["draw_report"]


def draw_report(
    config: PriorConfig, card: str, engine: str, batch_size: int, window: int = 1
) -> list[str]:
    """What is kept where, which blocks wait for which, and the time that a model of the card
    expects.

    Args:
        card: `a100`, `h100` or `b200`.
        engine: `cuda`, `cuda_tf32`, `cuda_bfloat16` or `cuda_w8a8`.
        window: Codes that a step computes; at most a row of the map.

    Raises:
        ValueError: batch_size or window is below 1.
        RuntimeError: There is no compiled module, or engine `cuda` cannot draw from the prior.
    """
    for name, value in (("batch_size", batch_size), ("window", window)):
        if value < 1:
            raise ValueError(f"draw_report: {name} must be >= 1, got {value}.")
    # Only sizes are needed, and the paper's priors take gigabytes.
    with torch.device("meta"), torch.no_grad():
        plan = interface_of(make_prior(config)).new_plan()
    # The report looks up the card's size by its name.
    nowhere = Card(blocks=0, shared_bytes=0, threads=THREADS)
    values = plan_values(plan, nowhere, PRECISIONS[engine], batch_size, guided=False)
    values["window"] = min(window, plan.size[1])
    return native_library().report(values, card).splitlines()
