"""A measured value with its interval, by the jackknife over groups of images.

Image i belongs to group i mod 10. A measure is computed once on all images and once without each
group. Moments, sums and neighbours can be kept group by group, so that eleven values cost little
more than one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GROUPS", "T_975", "Estimate", "check_count", "jackknife"]

GROUPS = 10
# Quantile 0.975 of Student's t with GROUPS - 1 degrees of freedom: SciPy would be a large
# dependency for one number.
T_975 = 2.262


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of images (of the smaller of two sets)."""

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
    """The interval of a value: value ± t·√((G−1)/G · Σ(θ_g − mean θ)²) for G groups.

    This is the jackknife of Efron and Stein (1981).

    Args:
        without_group: θ, the values without each of the groups.
        least, most: The smallest and the largest value that the measure can have; the interval is
            cut to them.
    """
    count = len(without_group)
    mean = math.fsum(without_group) / count
    spread = math.fsum((one - mean) ** 2 for one in without_group)
    reach = T_975 * math.sqrt((count - 1) / count * spread)
    return Estimate(value, max(least, value - reach), min(most, value + reach), images)


def check_count(metric: str, images: int, least: int, why: str) -> None:
    """Raises ValueError, which names the least number, if there are too few images."""
    if images < least:
        raise ValueError(
            f"{metric}: expected at least {least} images of each set, got {images}: {why}."
        )
