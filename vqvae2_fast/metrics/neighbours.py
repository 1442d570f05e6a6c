"""Precision, recall, density and coverage: whose neighbourhood an image falls into.

Precision and recall as in https://arxiv.org/abs/1904.06991 (k = 3 there), density and coverage as
in https://arxiv.org/abs/2002.09797 (k = 5 there). An image is inside another's ball if its distance
is less than that of the other's k-th neighbour in its own set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2_fast.metrics.estimates import GROUPS, Estimate, check_count, jackknife

__all__ = ["Neighbours", "neighbour_measures"]

LEAST_IMAGES = 100
_ROWS = 512  # of the matrix of distances at a time


@dataclass(frozen=True)
class Neighbours:
    """The share of fakes inside a real ball (precision), of reals inside a fake ball (recall), the
    mean number of real balls a fake is in, over k (density), and the share of reals whose ball
    holds a fake (coverage)."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def neighbour_measures(real: Tensor, fake: Tensor, *, k: int = 5) -> Neighbours:
    """All four measures with their intervals, in two passes over blocks of distances.

    Memory is 10·(N + M) radii and a block of 512 rows; time is that of N² + M² + NM products of D.
    All four depend on N, M and k: compare them only where those are equal.

    Args:
        real: Features `[N, D]`, float.
        fake: Features `[M, D]`.

    Raises:
        ValueError: Fewer than 100 images in a set.
    """
    images = min(len(real), len(fake))
    check_count(
        "precision and recall", images, LEAST_IMAGES, "balls reach to the k-th of the others"
    )
    real, fake = real.float(), fake.float()
    centre = real.mean(0)  # distances from norms and products cancel less about the mean
    real, fake = real - centre, fake - centre
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)  # [N, 1 + G], [M, 1 + G]
    real_group, fake_group = (torch.arange(len(x)) % GROUPS for x in (real, fake))

    # Without group g: balls and members of the others alone. Column 0 is all images.
    in_real = torch.zeros(len(fake), 1 + GROUPS, dtype=torch.int64)  # balls that hold each fake
    in_fake = torch.zeros(len(real), 1 + GROUPS, dtype=torch.bool)
    holds = torch.zeros(len(real), 1 + GROUPS, dtype=torch.bool)
    for rows in torch.arange(len(real)).split(_ROWS):
        distances = _squared(real[rows], fake)  # [R, M]
        for column in range(1 + GROUPS):
            here = real_group[rows] != column - 1
            there = fake_group != column - 1
            balls = distances < real_radii[rows, column, None]
            in_real[:, column] += balls[here].sum(0)
            holds[rows, column] = balls[:, there].any(1)
            balls = distances < fake_radii[None, :, column]
            in_fake[rows, column] = balls[:, there].any(1)

    def share(members: Tensor, group: Tensor, most: float = 1.0) -> Estimate:
        values = [
            float(members[group != column - 1, column].double().mean())
            for column in range(1 + GROUPS)
        ]
        return jackknife(values[0], values[1:], images, least=0.0, most=most)

    return Neighbours(
        share(in_real > 0, fake_group),
        share(in_fake, real_group),
        share(in_real.double() / k, fake_group, most=math.inf),
        share(holds, real_group),
    )


def _radii(features: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th other image, of all and without each group: `[N, 1 + G]`."""
    radii = torch.empty(len(features), 1 + GROUPS)
    group = torch.arange(len(features)) % GROUPS
    for rows in torch.arange(len(features)).split(_ROWS):
        distances = _squared(features[rows], features)
        distances[torch.arange(len(rows)), rows] = torch.inf
        # The k nearest of each group: what is left of them without a group holds the k nearest.
        nearest = torch.stack(
            [distances[:, group == g].topk(k, largest=False).values for g in range(GROUPS)], dim=1
        )  # [R, G, k]
        radii[rows, 0] = nearest.flatten(1).kthvalue(k).values
        for g in range(GROUPS):
            others = torch.cat([nearest[:, :g], nearest[:, g + 1 :]], dim=1).flatten(1)
            radii[rows, 1 + g] = others.kthvalue(k).values
    return radii


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances `[N, M]`."""
    norms = first.square().sum(1)[:, None] + second.square().sum(1)[None]
    return torch.addmm(norms, first, second.T, alpha=-2).clamp_(min=0)
