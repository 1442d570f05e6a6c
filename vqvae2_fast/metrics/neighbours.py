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
    real, fake = _by_group(real.float()), _by_group(fake.float())
    centre = real.mean(0)  # distances from norms and products cancel less about the mean
    real, fake = real - centre, fake - centre
    real_groups, fake_groups = _groups(len(real)), _groups(len(fake))
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)  # [N, 1 + G], [M, 1 + G]

    # Without group g: balls and members of the others alone. Column 0 is all images.
    in_real = torch.zeros(1 + GROUPS, len(fake), dtype=torch.int64)  # balls that hold each fake
    in_fake = torch.zeros(len(real), 1 + GROUPS, dtype=torch.bool)
    holds = torch.zeros(len(real), 1 + GROUPS, dtype=torch.bool)
    for group, members in enumerate(real_groups):
        for rows in torch.arange(members.start, members.stop).split(_ROWS):
            distances = _squared(real[rows], fake)  # [R, M]
            in_real += _balls_without(distances, real_radii[rows], group)
            nearest = torch.stack([distances[:, own].amin(1) for own in fake_groups], 1)  # [R, G]
            holds[rows] = _least_without(nearest) < real_radii[rows]
            in_fake[rows] = _in_some_ball(distances, fake_radii, fake_groups)
    in_real = in_real.T
    real_group, fake_group = ((torch.arange(len(x)) % GROUPS).sort().values for x in (real, fake))

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


def _by_group(features: Tensor) -> Tensor:
    """Image i is of group i mod G: in the order of groups, so that those of one lie together."""
    return torch.cat([features[group::GROUPS] for group in range(GROUPS)])


def _groups(images: int) -> list[slice]:
    """Where each group lies in that order."""
    ends = torch.tensor([len(range(g, images, GROUPS)) for g in range(GROUPS)]).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _least_without(values: Tensor) -> Tensor:
    """The least of `[R, G]` in all groups and without each: `[R, 1 + G]`."""
    least, second = values.topk(2, dim=1, largest=False).values.unbind(1)
    without = torch.where(values == least[:, None], second[:, None], least[:, None])
    return torch.cat([least[:, None], without], 1)


def _balls_without(distances: Tensor, radii: Tensor, group: int) -> Tensor:
    """How many balls of these rows, all of one group, hold each fake: `[1 + G, M]`.

    Without a group a ball is as large or larger, and most stay as they are: only what the larger
    ones hold beyond the ball of all images is counted anew.
    """
    of_all = (distances < radii[:, :1]).sum(0)
    counts = of_all.repeat(1 + GROUPS, 1)
    counts[1 + group] = 0
    for column in range(1, 1 + GROUPS):
        larger = (radii[:, column] > radii[:, 0]).nonzero().flatten()
        if column - 1 == group or not len(larger):
            continue
        own = distances[larger]
        beyond = (own < radii[larger, column, None]) & (own >= radii[larger, :1])
        counts[column] += beyond.sum(0)
    return counts


def _in_some_ball(distances: Tensor, radii: Tensor, groups: list[slice]) -> Tensor:
    """Whether each row lies in a fake's ball, of all fakes and without each group: `[R, 1 + G]`."""
    balls = distances < radii[:, 0]
    inside = torch.stack([balls[:, own].any(1) for own in groups], 1)  # by the group of the ball
    holding = inside.sum(1, keepdim=True)  # groups with such a ball
    found = torch.cat([holding > 0, holding > inside.long()], 1)
    for column, own in enumerate(groups, start=1):
        # Balls are as large or larger without a group: only rows in none of them can change.
        rows = (~found[:, column]).nonzero().flatten()
        larger = distances[rows] < radii[:, column]
        found[rows, column] = larger[:, : own.start].any(1) | larger[:, own.stop :].any(1)
    return found


def _radii(features: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th other image, of all and without each group: `[N, 1 + G]`.

    Args:
        features: In the order of groups.
    """
    radii = torch.empty(len(features), 1 + GROUPS)
    groups = _groups(len(features))
    for rows in torch.arange(len(features)).split(_ROWS):
        distances = _squared(features[rows], features)
        distances[torch.arange(len(rows)), rows] = torch.inf
        # The k nearest of each group: what is left of them without a group holds the k nearest.
        nearest = torch.stack(
            [distances[:, own].topk(k, largest=False).values for own in groups], dim=1
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
