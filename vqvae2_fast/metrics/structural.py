"""Structural similarity (SSIM) of two sets of images, at one scale and at five.

https://doi.org/10.1109/TIP.2003.819861: Gaussian window of 11 pixels with σ = 1.5, constants
0.01² and 0.03² for pixels in [0, 1]; each channel by itself, and only windows that lie inside the
image. torchmetrics pads the image instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.ops._checks import dtype_name

__all__ = ["MULTI_SCALE_SIDE", "multi_scale_similarity", "structural_similarity"]

_SIDE, _SIGMA = 11, 1.5
# Of the scales, fine to coarse: table of https://doi.org/10.1109/ACSSC.2003.1292216
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# Pixels of a side, so that the window fits at the coarsest scale.
MULTI_SCALE_SIDE = _SIDE * 2 ** (len(_WEIGHTS) - 1)


def structural_similarity(images: Tensor, others: Tensor) -> Tensor:
    """SSIM of each pair of images float `[B, C, H, W]` in [-1, 1]: float `[B]`, 1 for equal ones.

    It is computed in float32 at least, under autocast too.

    Raises:
        ValueError: The shapes differ, or the images are smaller than the window of 11×11.
        TypeError: Images that are not floating.
    """
    images, others = _checked(images, others, _SIDE)
    return _similarities(images, others)[0]


def multi_scale_similarity(images: Tensor, others: Tensor) -> Tensor:
    """MS-SSIM of each pair of images float `[B, C, H, W]` in [-1, 1]: float `[B]`, at most 1.

    The product over five scales, each half the size of the one before (means of 2×2 pixels), of the
    similarity of structure and, at the coarsest, of luminance too, to the power of their weights.
    Means of structure below 0 count as 0. It is computed in float32 at least, under autocast too.

    Raises:
        ValueError: The shapes differ, or a side is below 176, where the window does not fit at the
            coarsest scale.
        TypeError: Images that are not floating.
    """
    images, others = _checked(images, others, MULTI_SCALE_SIDE)
    product = torch.ones(len(images), device=images.device, dtype=torch.float32)
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            images, others = F.avg_pool2d(images, 2), F.avg_pool2d(others, 2)
        whole, structure = _similarities(images, others)
        last = scale + 1 == len(_WEIGHTS)
        product = product * (whole if last else structure).clamp(min=0) ** weight
    return product


def _checked(images: Tensor, others: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Both in float32 or float64: fewer digits cancel in a variance, xx − mean²."""
    for given in (images, others):
        if not given.is_floating_point():
            raise TypeError(
                f"expected floating images in [-1, 1], got {dtype_name(given.dtype)}: use "
                "images / 127.5 - 1 for bytes."
            )
    if images.shape != others.shape:
        raise ValueError(
            f"expected two batches of one shape, got {list(images.shape)} and {list(others.shape)}."
        )
    if min(images.shape[-2:]) < side:
        raise ValueError(
            f"expected images of {side}×{side} pixels or more, got "
            f"{images.shape[-2]}×{images.shape[-1]}."
        )
    dtype = torch.promote_types(torch.promote_types(images.dtype, others.dtype), torch.float32)
    return images.to(dtype), others.to(dtype)


def _window_means(like: Tensor, size: int) -> Tensor:
    """The weights of the pixels of a line in each of its windows: `[size − 10, size]`.

    On a CPU, products with these bands take less time than a convolution of one channel up to
    2,048×2,048: an eighth of it for images of 32×32.
    """
    pixel = torch.arange(size, device=like.device)
    offset = pixel - pixel[: size - _SIDE + 1, None] - _SIDE // 2
    weights = torch.exp(-offset.to(like.dtype).square() / (2 * _SIGMA**2))
    weights = weights.where(offset.abs() <= _SIDE // 2, 0)
    return weights / weights.sum(dim=1, keepdim=True)


def _similarities(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and its part without the luminance: float `[B]` each."""
    # The comparison of luminances takes pixels in [0, 1].
    x, y = ((side.flatten(0, 1)[:, None] + 1) / 2 for side in (images, others))  # [B·C, 1, H, W]
    rows, columns = (_window_means(x, size) for size in x.shape[-2:])
    with without_autocast(x.device):
        sums = rows @ torch.cat([x, y, x * x, y * y, x * y]) @ columns.mT  # [5·B·C, 1, H−10, W−10]
    mean_x, mean_y, xx, yy, xy = sums.chunk(5)
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    covariance = xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    whole, part = (
        values.unflatten(0, images.shape[:2]).flatten(1).mean(1)  # [B]
        for values in (similarity, structure)
    )
    return whole, part
