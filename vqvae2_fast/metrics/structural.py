"""Structural similarity (SSIM) of two sets of images.

https://doi.org/10.1109/TIP.2003.819861: Gaussian window of 11 pixels with σ = 1.5, constants
0.01² and 0.03² for pixels in [0, 1]; each channel by itself, and only windows that lie inside the
image. torchmetrics pads the image instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["structural_similarity"]

_SIDE, _SIGMA = 11, 1.5


def structural_similarity(images: Tensor, others: Tensor) -> Tensor:
    """SSIM of each pair of images float `[B, C, H, W]` in [-1, 1]: float `[B]`, 1 for equal ones.

    Raises:
        ValueError: The shapes differ, or the images are smaller than the window of 11×11.
    """
    if images.shape != others.shape:
        raise ValueError(
            f"structural_similarity: expected two batches of one shape, got {list(images.shape)} "
            f"and {list(others.shape)}."
        )
    if min(images.shape[-2:]) < _SIDE:
        raise ValueError(
            f"structural_similarity: expected images of {_SIDE}×{_SIDE} pixels or more, got "
            f"{images.shape[-2]}×{images.shape[-1]}."
        )
    # The comparison of luminances takes pixels in [0, 1].
    x, y = ((side.flatten(0, 1)[:, None] + 1) / 2 for side in (images, others))  # [B·C, 1, H, W]
    offsets = torch.arange(_SIDE, dtype=x.dtype, device=x.device) - _SIDE // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    window = torch.outer(weights, weights)[None, None]  # [1, 1, 11, 11]
    mean_x, mean_y, xx, yy, xy = F.conv2d(torch.cat([x, y, x * x, y * y, x * y]), window).chunk(5)
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    covariance = xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.unflatten(0, images.shape[:2]).flatten(1).mean(1)  # [B]
