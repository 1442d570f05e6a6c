"""All held-out measures of a pipeline at once, as one JSON-ready dictionary."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vqvae2_fast.data import codes_in_order
from vqvae2_fast.metrics.codebook import codebook_use
from vqvae2_fast.metrics.codecs import CodecPoint, webp_at_bits, webp_curve
from vqvae2_fast.metrics.likelihood import marginal_entropy, prior_likelihood
from vqvae2_fast.metrics.reconstruction import reconstruction_error
from vqvae2_fast.models.configs import level_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from vqvae2_fast.data import CodeStore
    from vqvae2_fast.models.pixelsnail import PixelSNAIL
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["evaluate_pipeline"]

_BATCH = 128  # code maps


def evaluate_pipeline(
    vqvae: VQVAE2,
    priors: Sequence[PixelSNAIL],
    images: Sequence[Tensor],
    codes: CodeStore,
    pixels: Tensor,
) -> tuple[dict[str, Any], list[CodecPoint]]:
    """Reconstruction, bits and use of codes on held-out images, and WebP beside them.

    Args:
        priors: One a level, coarse to fine.
        images: Batches float `[B, C, H, W]` in [-1, 1].
        codes: Of the same images.
        pixels: The same images as uint8 `[N, C, H, W]`, for WebP.

    Returns:
        The measures, and WebP's curve for pictures. `webp.psnr` is None where WebP has no setting
        with so few bits.
    """
    num_embeddings = vqvae.config.num_embeddings
    levels: dict[str, dict[str, Any]] = {}
    for level, name in enumerate(level_names(vqvae.config.num_levels)):
        height, width = codes.level_sizes[level]
        positions = height * width
        marginal = marginal_entropy(_maps(codes, level), num_embeddings)
        use = codebook_use(_maps(codes, level), num_embeddings)
        levels[name] = {
            "codes": positions,
            "codes_used": use.used,
            "perplexity": use.perplexity,
            "marginal_bits_per_code": marginal,
            "marginal_bits_per_image": marginal * positions,
        }
        batches = codes_in_order(codes, _BATCH)
        levels[name] |= asdict(prior_likelihood(priors[level], batches, level))
    curve = webp_curve(pixels)
    bits = sum(values["bits_per_image"] for values in levels.values())
    values: dict[str, Any] = {
        "images": len(codes),
        "reconstruction": asdict(reconstruction_error(vqvae, images)),
        "levels": levels,
        "bits_per_image": bits,
        "marginal_bits_per_image": sum(v["marginal_bits_per_image"] for v in levels.values()),
        "webp": {"bits_per_image": bits, "psnr": webp_at_bits(curve, bits)},
    }
    return values, curve


def _maps(codes: CodeStore, level: int) -> Iterator[Tensor]:
    return (maps[level] for maps, _ in codes_in_order(codes, _BATCH))
