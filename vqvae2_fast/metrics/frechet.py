"""Fréchet distance of two sets of features, from moments that are summed batch by batch.

‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½), eq. 6 of https://arxiv.org/abs/1706.08500. On Inception's
pooled features this is FID, on a map from its middle sFID (https://arxiv.org/abs/2103.03841).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.metrics.estimates import GROUPS, Estimate, check_count, jackknife

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Moments", "frechet_distance", "least_images"]


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
                f"expected the Moments of both sets, got a "
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
