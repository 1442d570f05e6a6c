"""A measured value with its interval: the jackknife over groups of images.

Images are dealt to ten groups by their number; a measure is computed once on all and once without
each group. Moments, sums and neighbours can be kept group by group, so that eleven values cost
little more than one, and memory does not grow with the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GROUPS", "Estimate", "check_count", "jackknife"]

GROUPS = 10
_T_975 = 2.262  # quantile 0.975 of Student's t with GROUPS - 1 degrees of freedom


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the images (of the smaller set, where there are two)."""

    value: float
    low: float
    high: float
    images: int

    def apart_from(self, other: Estimate) -> bool:
        """Whether the intervals have no point in common."""
        return self.low > other.high or self.high < other.low


def jackknife(
    value: float,
    without_group: Sequence[float],
    images: int,
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> Estimate:
    """The interval of a value from what it is without each of the groups.

    value ± t·√((G−1)/G · Σ(θ_g − mean θ)²), as in Efron and Stein (1981), for G groups.

    Args:
        least, most: Bounds of the values that the measure can take; the interval is cut to them.
    """
    count = len(without_group)
    mean = math.fsum(without_group) / count
    spread = math.fsum((one - mean) ** 2 for one in without_group)
    reach = _T_975 * math.sqrt((count - 1) / count * spread)
    return Estimate(value, max(least, value - reach), min(most, value + reach), images)


def check_count(metric: str, images: int, least: int, why: str) -> None:
    """Raises ValueError, with the least sensible number, if there are too few images."""
    if images < least:
        raise ValueError(
            f"{metric}: expected at least {least} images of each set, got {images}: {why}."
        )
