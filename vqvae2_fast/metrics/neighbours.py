"""Precision, recall, density and coverage: whose neighbourhood an image falls into.

Precision and recall are those of https://arxiv.org/abs/1904.06991 (k = 3 there), density and
coverage those of https://arxiv.org/abs/2002.09797 (k = 5 there). The ball of an image reaches to
the k-th neighbour that the image has in its own set; an image of the other set is inside if it is
closer than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.metrics.estimates import GROUPS, Estimate, check_count, jackknife
from vqvae2_fast.ops._checks import checked_integer

__all__ = ["Neighbours", "most_neighbours", "neighbour_measures"]

LEAST_IMAGES = 100
_ROWS = 512  # of the matrix of distances at a time, or fewer
_DISTANCES = 2**19  # at a time; several copies are held


@dataclass(frozen=True)
class Neighbours:
    """The four measures of fake images against real ones.

    Args:
        precision: Share of fakes that are inside the ball of a real image.
        recall: Share of real images that are inside the ball of a fake.
        density: Mean number of real balls that a fake is inside, divided by k.
        coverage: Share of real images whose ball has a fake inside.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def most_neighbours(images: int) -> int:
    """The largest k for sets of so many images: an interval leaves out a tenth of them, and no
    image is a neighbour of itself."""
    return images - math.ceil(images / GROUPS) - 1


def neighbour_measures(real: Tensor, fake: Tensor, *, k: int = 5) -> Neighbours:
    """All four measures with their intervals, in two passes over blocks of distances.

    This takes the memory of both sets, of 11·(N + M) radii and of some copies of 2¹⁹ distances, and
    the time of N² + M² + NM products of D numbers. All four depend on N, M and k, so compare only
    values for which these are equal.

    Args:
        real: Features `[N, D]`, float.
        fake: Features `[M, D]`.
        k: From 1 to `most_neighbours` of the smaller set.

    Raises:
        ValueError: A set has fewer than 100 images, another D or features that are not finite, or k
            is out of range.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            "expected features [N, D] and [M, D] of one network, got "
            f"{list(real.shape)} and {list(fake.shape)}."
        )
    images = min(len(real), len(fake))
    check_count("precision and recall", images, LEAST_IMAGES, "they are shares of the images")
    k = checked_integer("k", k, 1, most_neighbours(images))
    real, fake = _by_group(real.float()), _by_group(fake.float())  # copies
    centre = real.mean(0)  # distances from norms and products lose fewer digits about the mean
    real.sub_(centre)
    fake.sub_(centre)
    real_norms, fake_norms = _squared_norms(real), _squared_norms(fake)
    for name, norms in (("real", real_norms), ("fake", fake_norms)):
        if not norms.isfinite().all():
            raise ValueError(
                f"expected finite features, got NaN, infinity or numbers too "
                f"large for float32 in {name}."
            )
    real_groups, fake_groups = _groups(len(real)), _groups(len(fake))
    # [N, 1 + G], [M, 1 + G]
    real_radii, fake_radii = _radii(real, real_norms, k), _radii(fake, fake_norms, k)

    # Column 0 is of all images, column 1 + g of the balls and members of the groups other than g.
    # How many balls hold each fake.
    in_real = torch.zeros(1 + GROUPS, len(fake), dtype=torch.int64, device="cpu")
    in_fake = torch.zeros(len(real), 1 + GROUPS, dtype=torch.bool, device="cpu")
    holds = torch.zeros(len(real), 1 + GROUPS, dtype=torch.bool, device="cpu")
    for group, members in enumerate(real_groups):
        for rows in torch.arange(members.start, members.stop, device="cpu").split(_rows(fake)):
            distances = _squared(real[rows], real_norms[rows], fake, fake_norms)  # [R, M]
            in_real += _balls_without(distances, real_radii[rows], group)
            nearest = torch.stack([distances[:, own].amin(1) for own in fake_groups], 1)  # [R, G]
            holds[rows] = _least_without(nearest) < real_radii[rows]
            in_fake[rows] = _in_some_ball(distances, fake_radii, fake_groups)
    in_real = in_real.T
    real_group, fake_group = (
        (torch.arange(len(x), device="cpu") % GROUPS).sort().values for x in (real, fake)
    )

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
    """Images in the order of groups; image i belongs to group i mod G."""
    return torch.cat([features[group::GROUPS] for group in range(GROUPS)])


def _groups(images: int) -> list[slice]:
    """Where each group lies in the order of `_by_group`."""
    ends = list(accumulate(len(range(g, images, GROUPS)) for g in range(GROUPS)))
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _least_without(values: Tensor) -> Tensor:
    """The least of `[R, G]` in all groups and without each: `[R, 1 + G]`."""
    least, second = values.topk(2, dim=1, largest=False).values.unbind(1)
    without = torch.where(values == least[:, None], second[:, None], least[:, None])
    return torch.cat([least[:, None], without], 1)


def _balls_without(distances: Tensor, radii: Tensor, group: int) -> Tensor:
    """In how many balls of these rows, all of one group, each fake is: `[1 + G, M]`.

    Without a group a ball is as large or larger, and most keep their size, so only what the larger
    ones hold beyond the ball of all images is counted again.
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
        # Balls are as large or larger without a group, so only rows that are in none can change.
        rows = (~found[:, column]).nonzero().flatten()
        larger = distances[rows] < radii[:, column]
        found[rows, column] = larger[:, : own.start].any(1) | larger[:, own.stop :].any(1)
    return found


def _radii(features: Tensor, norms: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th other image, of all and without each group: `[N, 1 + G]`.

    Args:
        features: In the order of groups.
        norms: Theirs, squared, `[N]`.
    """
    radii = torch.empty(len(features), 1 + GROUPS, dtype=torch.float32, device="cpu")
    groups = _groups(len(features))
    for rows in torch.arange(len(features), device="cpu").split(_rows(features)):
        distances = _squared(features[rows], norms[rows], features, norms)
        distances[torch.arange(len(rows), device="cpu"), rows] = torch.inf
        # The k nearest in each group. The k nearest without a group are among those of the others.
        in_groups = [distances[:, own] for own in groups]
        found = [own.topk(min(k, own.shape[1]), largest=False).values for own in in_groups]
        nearest = torch.stack(
            [F.pad(own, (0, k - own.shape[1]), value=torch.inf) for own in found], dim=1
        )  # [R, G, k]
        radii[rows, 0] = nearest.flatten(1).kthvalue(k).values
        for g in range(GROUPS):
            others = torch.cat([nearest[:, :g], nearest[:, g + 1 :]], dim=1).flatten(1)
            radii[rows, 1 + g] = others.kthvalue(k).values
    return radii


def _rows(columns: Tensor) -> int:
    """Rows of the matrix of distances to these images that are computed at a time."""
    return max(1, min(_ROWS, _DISTANCES // len(columns)))


def _squared_norms(features: Tensor) -> Tensor:
    """`[N, D]` -> `[N]`, without the squares of all features in memory."""
    return torch.einsum("nd,nd->n", features, features)


def _squared(first: Tensor, norms: Tensor, second: Tensor, second_norms: Tensor) -> Tensor:
    """Squared distances `[N, M]` of features whose squared norms are `[N]` and `[M]`."""
    sums = norms[:, None] + second_norms
    return sums.addmm_(first, second.T, alpha=-2).clamp_(min=0)
