"""Errors of reconstructions: PSNR, SSIM and MS-SSIM (LPIPS is in perceptual.py).

SSIM is that of https://doi.org/10.1109/TIP.2003.819861: Gaussian window of 11 pixels with σ = 1.5,
constants 0.01² and 0.03² for pixels in [0, 1]; each channel by itself, and only windows that lie
inside the image. torchmetrics pads the image instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.metrics.estimates import ALONE, terms_of_all
from vqvae2_fast.modules.contexts import device_of, evaluating, without_autocast
from vqvae2_fast.ops._checks import dtype_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vqvae2_fast.metrics.estimates import Processes
    from vqvae2_fast.metrics.perceptual import LPIPS
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = [
    "MULTI_SCALE_SIDE",
    "PairMeasures",
    "PairSums",
    "Reconstruction",
    "multi_scale_similarity",
    "psnr",
    "reconstruction_error",
    "reconstruction_measures",
    "structural_similarity",
]


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
    each: Callable[[Tensor, Tensor], Tensor] | None = None,
    least_side: int = 1,
    drawn: bool = False,
    better: Literal["lower", "higher"] = "lower",
    **options: Any,
) -> Any:
    """A measure, what reports call it, and how they print it.

    Args:
        each: Its values `[B]` of shown images and the originals, float `[B, C, H, W]` in [-1, 1];
            None if it follows from the squared errors, or needs a network that was loaded.
        least_side: Images with a smaller side are not measured by it.
        drawn: It has a panel in the plot of quality against bits, where codecs have it too.
        better: Which values are better.
    """
    metadata = {
        "label": label,
        "form": form,
        "each": each,
        "least_side": least_side,
        "drawn": drawn,
        "better": better,
    }
    return field(metadata=metadata, **options)


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared errors over a set of images, on both scales that papers use, and dB."""

    mse: float = _measure("MSE, pixels in [-1, 1]", ".5f")
    mse_unit: float = _measure("MSE, pixels in [0, 1]", ".5f")
    psnr: float = _measure("PSNR, dB", ".2f", drawn=True, better="higher")


@dataclass(frozen=True)
class PairMeasures(Reconstruction):
    """The measures of pairs of images, means over the images: a new one is a field here.

    What was not measured is None: LPIPS without its network, SSIM of images with a side below 11,
    MS-SSIM below 176, and a new measure in an earlier evaluation.
    """

    ssim: float | None = _measure(
        "SSIM", ".4f", each=structural_similarity, least_side=_SIDE, drawn=True, better="higher"
    )
    lpips: float | None = _measure("LPIPS", ".4f", drawn=True)
    ms_ssim: float | None = _measure(
        "MS-SSIM",
        ".4f",
        each=multi_scale_similarity,
        least_side=MULTI_SCALE_SIDE,
        drawn=True,
        better="higher",
        default=None,
    )


class PairSums:
    """Sums over pairs of images and their reconstructions, with a term for each batch.

    Args:
        measures: By the name of a field of `PairMeasures`, what it is of each pair.

    Attributes:
        terms: Images, pixels, squared errors, and the sum of each measure, of each batch.
    """

    def __init__(self, measures: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> None:
        self._measures = measures
        self.terms: list[tuple[float, ...]] = []

    @classmethod
    def of_size(cls, size: tuple[int, int], perceptual: LPIPS | None = None) -> PairSums:
        """With the measures whose windows fit into images of this size.

        Raises:
            ValueError: LPIPS of images below 11 pixels, where it means nothing.
        """
        side = min(size)
        if perceptual is not None and side < _SIDE:
            raise ValueError(
                f"expected images of {_SIDE} pixels or more for LPIPS, got {size}; leave it out."
            )
        measures = {
            own.name: own.metadata["each"]
            for own in fields(PairMeasures)
            if own.metadata["each"] is not None and side >= own.metadata["least_side"]
        }
        return cls(measures if perceptual is None else {**measures, "lpips": perceptual})

    def add(self, images: Tensor, reconstructed: Tensor) -> None:
        """Images `[B, C, H, W]` in [-1, 1] and what was decoded, on one device.

        Reconstructions are clipped to [-1, 1] as when they are shown, and not rounded to bytes.
        """
        shown = reconstructed.clamp(-1, 1)
        squares = float((shown - images).square().sum(dtype=torch.float64))
        sums = [
            float(each(shown, images).sum(dtype=torch.float64)) for each in self._measures.values()
        ]
        self.terms.append((len(images), images.numel(), squares, *sums))

    def result(self, processes: Processes = ALONE) -> Reconstruction:
        """Means over all images of all processes: `PairMeasures` if any of its own was measured.

        Raises:
            ValueError: No images were added.
        """
        terms = terms_of_all(processes, self.terms)
        if not terms:
            raise ValueError("expected at least one batch of images, got none.")
        count, pixels, squares, *sums = map(math.fsum, zip(*terms, strict=True))
        mse = squares / pixels
        errors = (mse, mse / 4, psnr(mse / 4))  # [-1, 1] is twice as wide as [0, 1]
        if not sums:
            return Reconstruction(*errors)
        means: dict[str, Any] = {"ssim": None, "lpips": None}  # which have no default
        means |= zip(self._measures, (total / count for total in sums), strict=True)
        return PairMeasures(*errors, **means)


def reconstruction_error(model: VQVAE2, images: Iterable[Tensor]) -> Reconstruction:
    """Errors of a VQ-VAE on batches of images `[B, C, H, W]` in [-1, 1], without structure."""
    return _measured(model, images, PairSums({}))


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
