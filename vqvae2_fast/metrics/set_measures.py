"""Measures of features: Fréchet and kernel distance, Inception score, precision, recall, ...

Fréchet distance: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½), eq. 6 of https://arxiv.org/abs/1706.08500,
from moments that are summed batch by batch. On Inception's pooled features this is FID, on a map
from its middle sFID (https://arxiv.org/abs/2103.03841).

Kernel distance: squared maximum mean discrepancy under a cubic kernel (KID), k(x, y) = (x·y/D +
1)³, https://arxiv.org/abs/1801.01401. It is unbiased for any number of images, which makes it the
distance for small sets, where a Fréchet distance is mostly bias.

Inception score: how sure a classifier is of each image, and how evenly it uses its classes.
exp(E KL(p(y|x) ‖ p(y))), https://arxiv.org/abs/1606.03498. It looks at one set only, and rewards
images that were learnt by heart as much as new ones.

Precision and recall are those of https://arxiv.org/abs/1904.06991 (k = 3 there), density and
coverage those of https://arxiv.org/abs/2002.09797 (k = 5 there). The ball of an image reaches to
the k-th neighbour that the image has in its own set; an image of the other set is inside if it is
closer than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.metrics.estimates import GROUPS, T_975, Estimate, check_count, jackknife
from vqvae2_fast.ops._checks import checked_integer

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LEAST_FOR_KERNEL",
    "Moments",
    "Neighbours",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "least_images",
    "most_neighbours",
    "neighbour_measures",
    "squared_discrepancy",
]


class Moments:
    """Number, sum and sum of products of features, for each group of images.

    They take 8·GROUPS·D² bytes (131 MB for D = 1280, 336 MB for 2048) for any number of images.
    Before features are summed, in float64, the mean of the first batch is subtracted: covariances
    then lose no digits.

    Args:
        dim: D, the number of features of an image.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.counts = torch.zeros(GROUPS, dtype=torch.float64, device="cpu")
        self.sums = torch.zeros(GROUPS, dim, dtype=torch.float64, device="cpu")
        self.products = torch.zeros(GROUPS, dim, dim, dtype=torch.float64, device="cpu")
        self._origin: Tensor | None = None

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Moments:
        """The moments of features `[B, D]` that come batch by batch.

        Raises:
            ValueError: There is no batch, or as `update`.
        """
        moments: Moments | None = None
        for batch in batches:
            if batch.ndim != 2:
                raise ValueError(
                    f"expected batches of features [B, D], got one of {list(batch.shape)}:"
                    " give a list of batches, [features] for one."
                )
            if moments is None:
                moments = cls(batch.shape[1])
            moments.update(batch)
        if moments is None:
            raise ValueError("expected at least one batch of features, got none.")
        return moments

    @property
    def images(self) -> int:
        return int(self.counts.sum())

    def update(self, features: Tensor) -> None:
        """Add the features of the next images, `[B, D]` of any floating type.

        Raises:
            ValueError: They have another D, or are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"expected features [B, {self.dim}], got {list(features.shape)}.")
        if not features.isfinite().all():
            raise ValueError("expected finite features, got NaN or infinity.")
        if not len(features):
            return
        rows = features.detach().to("cpu", torch.float64)
        if self._origin is None:
            self._origin = rows.mean(0)
        rows = rows - self._origin
        groups = (torch.arange(len(rows), device="cpu") + self.images) % GROUPS
        for group in range(GROUPS):
            own = rows[groups == group]
            self.counts[group] += len(own)
            self.sums[group] += own.sum(0)
            self.products[group].addmm_(own.T, own)

    def mean_and_covariance(self, without: int | None = None) -> tuple[Tensor, Tensor]:
        """μ `[D]` and the unbiased Σ `[D, D]`, float64, of all images, or of all except one
        group."""
        count, total, products = self.counts.sum(), self.sums.sum(0), self.products.sum(0)
        if without is not None:
            count = count - self.counts[without]
            total = total - self.sums[without]
            products = products - self.products[without]
        assert self._origin is not None
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
        return mean + self._origin, covariance


def least_images(dim: int) -> int:
    """The least number of images for a Fréchet distance of D features: D, but at least 100.

    With fewer than D images a covariance is singular, and the distance is mostly bias.
    """
    return max(100, dim)


def gaussian_distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The distance of two Gaussians, each a mean `[D]` and a covariance `[D, D]` in float64.

    tr (Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric. So
    there are two symmetric eigenvalue problems, and no matrix root of an almost singular product.
    """
    (mean, covariance), (other_mean, other_covariance) = first, second
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # [D, D]; root @ root.T is the covariance
    inner = root.T @ other_covariance @ root
    mixed = torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
    trace = covariance.trace() + other_covariance.trace() - 2 * mixed
    return float((mean - other_mean).square().sum() + trace)


def frechet_distance(real: Moments, fake: Moments, *, interval: bool = True) -> Estimate:
    """The Fréchet distance of two sets with its interval.

    It is biased upwards by about tr Σ·D/n, so compare only distances of equally many images, and
    compare each with the distance of two sets of real images.

    Args:
        interval: Without it `low` and `high` are the value, which takes an eleventh of the time.

    Raises:
        ValueError: The sets have different D, or fewer images than `least_images`.
        TypeError: A set is not given by its moments.
    """
    for moments in (real, fake):
        if not isinstance(moments, Moments):
            raise TypeError(
                "expected the Moments of both sets, got a "
                f"{type(moments).__name__}: use Moments.of([features]) for features [N, D]."
            )
    if real.dim != fake.dim:
        raise ValueError(f"expected features of one network, got {real.dim} and {fake.dim}.")
    images = min(real.images, fake.images)
    check_count(
        "frechet_distance",
        images,
        least_images(real.dim),
        f"the covariance of {real.dim} features is singular with fewer",
    )
    value = gaussian_distance(real.mean_and_covariance(), fake.mean_and_covariance())
    if not interval:
        return Estimate(value, value, value, images)
    parts = [
        gaussian_distance(real.mean_and_covariance(group), fake.mean_and_covariance(group))
        for group in range(GROUPS)
    ]
    return jackknife(value, parts, images, least=0.0)


LEAST_FOR_KERNEL = 200
_BLOCKS, _BLOCK = 10, 1000  # at least ten blocks, of at most 1,000 images


def squared_discrepancy(real: Tensor, fake: Tensor) -> float:
    """Unbiased MMD² of features `[N, D]` and `[M, D]`, in float64 (eq. 4 of the paper).

    It can be negative: its mean is zero if both sets are from one distribution.

    Raises:
        ValueError: Features of two widths, or that are not finite.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"expected features [N, D] and [M, D], got {list(real.shape)} and {list(fake.shape)}."
        )
    x, y = real.double(), fake.double()
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("expected finite features, got NaN or infinity.")
    dim = x.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).div_(dim).add_(1).pow_(3)

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distance(real: Tensor, fake: Tensor, *, seed: int = 0) -> Estimate:
    """Mean MMD² over blocks of both sets, with its interval.

    Both sets are dealt at random into at least ten blocks of at most 1,000 images that have none in
    common. The distances of the blocks are independent given the data, so their spread gives the
    interval; with more than ten blocks it is a little too wide. (torch-fidelity draws 100
    overlapping subsets of 1,000; the expectation is the same.)

    Args:
        real, fake: Features `[N, D]` and `[M, D]`.

    Raises:
        ValueError: A set has fewer than 200 images; or as `squared_discrepancy`.
    """
    images = min(len(real), len(fake))
    check_count(
        "kernel_distance", images, LEAST_FOR_KERNEL, f"it is the mean over {_BLOCKS} blocks or more"
    )
    size = min(_BLOCK, images // _BLOCKS)
    blocks = images // size
    generator = torch.Generator().manual_seed(seed)
    parts = zip(
        torch.randperm(len(real), generator=generator, device="cpu").split(size),
        torch.randperm(len(fake), generator=generator, device="cpu").split(size),
        strict=False,
    )
    values = [
        squared_discrepancy(real[rows], fake[columns])
        for rows, columns in parts
        if len(rows) == len(columns) == size
    ][:blocks]
    mean = math.fsum(values) / blocks
    spread = math.fsum((value - mean) ** 2 for value in values) / (blocks * (blocks - 1))
    reach = T_975 * math.sqrt(spread)
    return Estimate(mean, mean - reach, mean + reach, images)


LEAST_FOR_SCORE = 100
# How far a sum of probabilities may be from 1: bfloat16 rounds log(1/1000) by up to 0.016.
_TOLERANCE = 0.05


def inception_score(log_probabilities: Iterable[Tensor]) -> Estimate:
    """The score over all images, between 1 and the number of classes.

    It is computed over all images at once. The mean over ten splits, which is common, is lower by a
    bias that depends on the size of the splits.

    Args:
        log_probabilities: Batches of log p(y|x), `[B, classes]`.

    Raises:
        ValueError: There are fewer than 100 images, or the probabilities of an image do not sum
            to 1.
    """
    counts = torch.zeros(GROUPS, dtype=torch.float64, device="cpu")
    negative_entropy = torch.zeros(GROUPS, dtype=torch.float64, device="cpu")
    shares: Tensor | None = None  # [GROUPS, classes]
    for batch in log_probabilities:
        if batch.ndim != 2:
            raise ValueError(
                "expected batches of log probabilities [B, classes], got one of "
                f"{list(batch.shape)}: give a list of batches, [log_probabilities] for one."
            )
        logs = batch.detach().to("cpu", torch.float64)
        groups = (torch.arange(len(logs), device="cpu") + int(counts.sum())) % GROUPS
        probabilities = logs.exp()
        sums = probabilities.sum(1)
        if not ((sums - 1).abs() <= _TOLERANCE).all():
            raise ValueError(
                "expected log probabilities, whose exp sums to 1 for each image, "
                f"got sums from {sums.min():g} to {sums.max():g}: use logits.log_softmax(1) for "
                "logits."
            )
        if shares is None:
            shares = torch.zeros(GROUPS, logs.shape[1], dtype=torch.float64, device="cpu")
        counts.index_add_(0, groups, torch.ones(len(logs), dtype=torch.float64, device="cpu"))
        shares.index_add_(0, groups, probabilities)
        # 0 · log 0 is 0.
        terms = torch.where(probabilities > 0, probabilities * logs, 0.0).sum(1)
        negative_entropy.index_add_(0, groups, terms)
    images = int(counts.sum())
    check_count("inception_score", images, LEAST_FOR_SCORE, "it is a mean over images")
    assert shares is not None
    totals = (counts.sum(), shares.sum(0), negative_entropy.sum())
    value = _score(*totals)
    parts = [
        _score(totals[0] - counts[g], totals[1] - shares[g], totals[2] - negative_entropy[g])
        for g in range(GROUPS)
    ]
    return jackknife(value, parts, images, least=1.0)


def _score(count: Tensor, shares: Tensor, negative_entropy: Tensor) -> float:
    marginal = shares / count
    entropy = torch.special.entr(marginal.clamp(min=0)).sum()
    return math.exp(float(negative_entropy / count + entropy))


LEAST_FOR_NEIGHBOURS = 100
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
    check_count(
        "precision and recall", images, LEAST_FOR_NEIGHBOURS, "they are shares of the images"
    )
    k = checked_integer("k", k, 1, most_neighbours(images))
    real, fake = _by_group(real.float()), _by_group(fake.float())  # copies
    centre = real.mean(0)  # distances from norms and products lose fewer digits about the mean
    real.sub_(centre)
    fake.sub_(centre)
    real_norms, fake_norms = _squared_norms(real), _squared_norms(fake)
    for name, norms in (("real", real_norms), ("fake", fake_norms)):
        if not norms.isfinite().all():
            raise ValueError(
                "expected finite features, got NaN, infinity or numbers too "
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
