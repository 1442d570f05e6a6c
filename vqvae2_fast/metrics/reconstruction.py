"""Error of reconstructions, on both scales of pixels that papers use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.metrics.structural import structural_similarity
from vqvae2_fast.modules.device import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqvae2_fast.metrics.perceptual import LPIPS
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = [
    "PairMeasures",
    "Reconstruction",
    "pair_measures",
    "psnr",
    "reconstruction_error",
    "reconstruction_measures",
]

_SMALLEST = 11  # pixels: SSIM's window


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [0, 1].

    −10·log₁₀(mse). Give it the mean over a set: the mean of single images' ratios is another,
    larger number, and infinite as soon as one image is exact.
    """
    return math.inf if mse == 0 else -10 * math.log10(mse)


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared errors over a set of images: pixels in [-1, 1], pixels in [0, 1], and dB."""

    mse: float
    mse_unit: float
    psnr: float


@torch.no_grad()
def reconstruction_error(model: VQVAE2, images: Iterable[Tensor]) -> Reconstruction:
    """Error of a VQ-VAE on batches of images `[B, C, H, W]` in [-1, 1].

    Reconstructions are clipped to [-1, 1] as when they are shown, and not rounded to bytes.
    """
    device = device_of(model)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in images:
        batch = batch.to(device)
        difference = model.decode(model.encode(batch)).clamp(-1, 1) - batch
        total += difference.square().sum(dtype=torch.float64)
        count += batch.numel()
    if not count:
        raise ValueError("reconstruction_error: expected at least one batch of images, got none.")
    mse = float(total) / count
    return Reconstruction(mse, mse / 4, psnr(mse / 4))  # [-1, 1] is twice as wide as [0, 1]


@dataclass(frozen=True)
class PairMeasures:
    """Errors of reconstructions with the measures that see structure; LPIPS is None without it."""

    mse: float
    mse_unit: float
    psnr: float
    ssim: float
    lpips: float | None


@torch.no_grad()
def pair_measures(
    model: VQVAE2, images: Iterable[Tensor], perceptual: LPIPS | None = None
) -> PairMeasures:
    """`reconstruction_error` with the means of SSIM and LPIPS over the images.

    Args:
        images: Batches `[B, C, H, W]` in [-1, 1] of 11 pixels or more.
    """
    device = device_of(model)
    totals = torch.zeros(3, dtype=torch.float64)
    count = pixels = 0
    for batch in images:
        batch = batch.to(device)
        reconstructed = model.decode(model.encode(batch)).clamp(-1, 1)
        squares = (reconstructed - batch).square().sum(dtype=torch.float64)
        similarity = structural_similarity(reconstructed, batch).sum(dtype=torch.float64)
        distance = squares.new_zeros(())
        if perceptual is not None:
            distance = perceptual(reconstructed, batch).sum(dtype=torch.float64)
        totals += torch.stack([squares, similarity, distance]).cpu()
        count, pixels = count + len(batch), pixels + batch.numel()
    if not count:
        raise ValueError("pair_measures: expected at least one batch of images, got none.")
    mse = float(totals[0]) / pixels
    lpips = None if perceptual is None else float(totals[2]) / count
    return PairMeasures(mse, mse / 4, psnr(mse / 4), float(totals[1]) / count, lpips)


def reconstruction_measures(
    model: VQVAE2, images: Iterable[Tensor], perceptual: LPIPS | None = None
) -> Reconstruction | PairMeasures:
    """`pair_measures`, or of images below 11 pixels, where those mean nothing, the error alone.

    Raises:
        ValueError: LPIPS of images below 11 pixels.
    """
    if min(model.config.image_size) >= _SMALLEST:
        return pair_measures(model, images, perceptual)
    if perceptual is not None:
        raise ValueError(
            f"LPIPS: expected images of {_SMALLEST} pixels or more, the VQ-VAE's are "
            f"{model.config.image_size}; leave it out."
        )
    return reconstruction_error(model, images)
