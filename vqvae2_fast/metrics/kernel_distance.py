"""Kernel distance: squared maximum mean discrepancy under a cubic kernel (KID).

k(x, y) = (x·y/D + 1)³, https://arxiv.org/abs/1801.01401. It is unbiased for any number of images,
which makes it the distance for small sets, where a Fréchet distance is mostly bias.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqvae2_fast.metrics.estimates import T_975, Estimate, check_count

__all__ = ["LEAST_IMAGES", "kernel_distance", "squared_discrepancy"]

LEAST_IMAGES = 200
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
        "kernel_distance", images, LEAST_IMAGES, f"it is the mean over {_BLOCKS} blocks or more"
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
