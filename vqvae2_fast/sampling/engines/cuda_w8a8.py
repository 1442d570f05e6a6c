"""Engine `cuda_w8a8`: engine `cuda` with int8 weights and inputs, and the bits of `cpu_w8a8`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqvae2_fast.sampling.engines.cuda import draw_cuda
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.quantized import checked_ranges, warn_of_clamped

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from vqvae2_fast.sampling.plan import SamplingPlan
    from vqvae2_fast.sampling.quantized import InputRanges
    from vqvae2_fast.sampling.request import Drawn, DrawRequest

__all__ = ["Calibrated", "draw_cuda_w8a8"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What int8 needs besides a plan.

    Args:
        ranges: Of the prior's calibration.
        fold: Makes the prior's plan as the CPU does, which adds up the norms of weights in another
            order than a GPU. So weights are rounded to the same integers.
    """

    ranges: InputRanges
    fold: Callable[[], SamplingPlan]


def draw_cuda_w8a8(plan: SamplingPlan, prior: nn.Module, request: DrawRequest) -> Drawn:
    """`draw_cuda` with int8 weights and inputs, by the prior's calibration.

    Warns if inputs often exceed its ranges: then the codes are unlike those of the calibration.
    """
    ranges = checked_ranges(prior, plan, "cuda_w8a8")

    def folded() -> SamplingPlan:
        copy = deepcopy(prior).cpu()
        return interface_of(copy).new_plan()

    drawn = draw_cuda(plan, request, "cuda_w8a8", calibrated=Calibrated(ranges, folded))
    warn_of_clamped("cuda_w8a8", drawn)
    return drawn
