"""A measured value with its interval, by the jackknife over groups of images.

Image i belongs to group i mod 10. A measure is computed once on all images and once without each
group. Moments, sums and neighbours can be kept group by group, so that eleven values cost little
more than one.

Where several processes measure a set, each takes its share of the batches. Every sum has one term
for each batch, and the terms of all processes are added exactly: the result is that of one process,
bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ALONE",
    "GROUPS",
    "T_975",
    "Estimate",
    "Processes",
    "check_count",
    "jackknife",
    "terms_of_all",
]


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


class Processes(Protocol):
    """The processes of a run, such as `runs.ranks.Ranks`."""

    @property
    def rank(self) -> int: ...
    @property
    def count(self) -> int: ...
    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, which are ready for JSON."""


class _Alone:
    rank, count = 0, 1

    def gathered(self, value: Any) -> list[Any]:
        return [value]


ALONE = _Alone()


def terms_of_all(processes: Processes, terms: Iterable[Any]) -> list[Any]:
    """The terms of all processes, in no order that means anything."""
    return [term for own in processes.gathered(list(terms)) for term in own]
