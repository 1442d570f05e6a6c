"""Errors of reconstructions. A measure of pairs of images is added here: its field and its sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vqvae2_fast.metrics.shares import ALONE, terms_of_all
from vqvae2_fast.metrics.structural import (
    MULTI_SCALE_SIDE,
    multi_scale_similarity,
    structural_similarity,
)
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.modules.evaluating import evaluating

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqvae2_fast.metrics.perceptual import LPIPS
    from vqvae2_fast.metrics.shares import Processes
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = [
    "PairMeasures",
    "PairSums",
    "Reconstruction",
    "psnr",
    "reconstruction_error",
    "reconstruction_measures",
]

_SMALLEST = 11  # pixels: SSIM's window


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [0, 1].

    −10·log₁₀(mse). Give it the mean over a set: the mean of the ratios of single images is another,
    larger number, and infinite as soon as one image is exact.
    """
    return math.inf if mse == 0 else -10 * math.log10(mse)


def _measure(
    label: str,
    form: str,
    *,
    drawn: bool = False,
    better: Literal["lower", "higher"] = "lower",
    **options: Any,
) -> Any:
    """A measure, what reports call it, and how they print it.

    Args:
        drawn: It has a panel in the plot of quality against bits.
        better: Which values are better.
    """
    metadata = {"label": label, "form": form, "drawn": drawn, "better": better}
    return field(metadata=metadata, **options)


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared errors over a set of images, on both scales that papers use, and dB."""

    mse: float = _measure("MSE, pixels in [-1, 1]", ".5f")
    mse_unit: float = _measure("MSE, pixels in [0, 1]", ".5f")
    psnr: float = _measure("PSNR, dB", ".2f", drawn=True, better="higher")


@dataclass(frozen=True)
class PairMeasures(Reconstruction):
    """With the measures that see structure, means over the images; LPIPS is None without it, and
    MS-SSIM for images with a side below 176.

    Earlier evaluations are read too: a new measure is None by default.
    """

    ssim: float = _measure("SSIM", ".4f", drawn=True, better="higher")
    lpips: float | None = _measure("LPIPS", ".4f", drawn=True)
    ms_ssim: float | None = _measure("MS-SSIM", ".4f", drawn=True, better="higher", default=None)


class PairSums:
    """Sums over pairs of images and their reconstructions, with a term for each batch.

    Args:
        structure: Whether SSIM is measured.
        perceptual: LPIPS, if it is to be measured too.
        scales: Whether MS-SSIM is measured.

    Attributes:
        terms: Images, pixels, squared errors, SSIM, MS-SSIM and LPIPS of each batch.
    """

    def __init__(
        self, structure: bool, perceptual: LPIPS | None = None, scales: bool = False
    ) -> None:
        self._structure, self._perceptual, self._scales = structure, perceptual, scales
        self.terms: list[tuple[int, int, float, float, float, float]] = []

    @classmethod
    def of_size(cls, size: tuple[int, int], perceptual: LPIPS | None = None) -> PairSums:
        """With SSIM and MS-SSIM where their windows fit into images of this size.

        Raises:
            ValueError: LPIPS of images below 11 pixels, where it means nothing.
        """
        structure = min(size) >= _SMALLEST
        if perceptual is not None and not structure:
            raise ValueError(
                f"expected images of {_SMALLEST} pixels or more, got {size}; leave it out."
            )
        return cls(structure, perceptual, scales=min(size) >= MULTI_SCALE_SIDE)

    def add(self, images: Tensor, reconstructed: Tensor) -> None:
        """Images `[B, C, H, W]` in [-1, 1] and what was decoded, on one device.

        Reconstructions are clipped to [-1, 1] as when they are shown, and not rounded to bytes.
        """
        shown = reconstructed.clamp(-1, 1)
        squares = float((shown - images).square().sum(dtype=torch.float64))
        similarity = over_scales = distance = 0.0
        if self._structure:
            similarity = float(structural_similarity(shown, images).sum(dtype=torch.float64))
        if self._scales:
            over_scales = float(multi_scale_similarity(shown, images).sum(dtype=torch.float64))
        if self._perceptual is not None:
            distance = float(self._perceptual(shown, images).sum(dtype=torch.float64))
        self.terms.append((len(images), images.numel(), squares, similarity, over_scales, distance))

    def result(self, processes: Processes = ALONE) -> Reconstruction:
        """Means over all images of all processes: `PairMeasures` if structure was measured.

        Raises:
            ValueError: No images were added.
        """
        terms = terms_of_all(processes, self.terms)
        if not terms:
            raise ValueError("reconstruction: expected at least one batch of images, got none.")
        count, pixels, squares, *means = map(math.fsum, zip(*terms, strict=True))
        similarity, over_scales, distance = (total / count for total in means)
        mse = squares / pixels
        errors = (mse, mse / 4, psnr(mse / 4))  # [-1, 1] is twice as wide as [0, 1]
        if not self._structure:
            return Reconstruction(*errors)
        lpips = None if self._perceptual is None else distance
        return PairMeasures(*errors, similarity, lpips, over_scales if self._scales else None)


def reconstruction_error(model: VQVAE2, images: Iterable[Tensor]) -> Reconstruction:
    """Errors of a VQ-VAE on batches of images `[B, C, H, W]` in [-1, 1], without structure."""
    return _measured(model, images, PairSums(structure=False))


def reconstruction_measures(
    model: VQVAE2,
    images: Iterable[Tensor],
    perceptual: LPIPS | None = None,
    processes: Processes = ALONE,
) -> Reconstruction:
    """`PairMeasures`; for images below 11 pixels, where SSIM means nothing, only the errors.

    Args:
        processes: Those that measure together, each with batches of its own.

    Raises:
        ValueError: LPIPS of images below 11 pixels.
    """
    sums = PairSums.of_size(model.config.image_size, perceptual)
    return _measured(model, images, sums, processes)


@torch.no_grad()
def _measured(
    model: VQVAE2, images: Iterable[Tensor], sums: PairSums, processes: Processes = ALONE
) -> Reconstruction:
    device = device_of(model)
    with evaluating(model):
        for batch in images:
            batch = batch.to(device)
            sums.add(batch, model.decode(model.encode(batch)))
    return sums.result(processes)
