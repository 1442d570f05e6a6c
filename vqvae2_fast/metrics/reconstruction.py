"""Error of reconstructions, on both scales of pixels that papers use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["Reconstruction", "psnr", "reconstruction_error"]


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
    device = next(model.parameters()).device
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
