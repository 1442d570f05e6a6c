"""All held-out measures of a pipeline at once, as one JSON-ready dictionary."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.data import codes_in_order
from vqvae2_fast.metrics.codebook import codebook_use
from vqvae2_fast.metrics.codecs import CodecPoint, codec_at_bits, webp_curve
from vqvae2_fast.metrics.likelihood import marginal_entropy, prior_likelihood
from vqvae2_fast.metrics.reconstruction import reconstruction_error
from vqvae2_fast.models.configs import level_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from vqvae2_fast.data import CodeStore
    from vqvae2_fast.models.pixelsnail import PixelSNAIL
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["add_training_likelihood", "evaluate_pipeline"]

_BATCH = 128  # code maps
_CODEC_IMAGES = 1000  # WebP takes 2 ms for an image and a quality, and has 21 of them


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
        pixels: The same images as uint8 `[N, C, H, W]`, of which 1000 are given to WebP.

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
    curve = webp_curve(spread_evenly(pixels, _CODEC_IMAGES))
    bits = sum(values["bits_per_image"] for values in levels.values())
    values: dict[str, Any] = {
        "images": len(codes),
        "reconstruction": asdict(reconstruction_error(vqvae, images)),
        "levels": levels,
        "bits_per_image": bits,
        "marginal_bits_per_image": sum(v["marginal_bits_per_image"] for v in levels.values()),
        "bits_per_dim": bits / pixels[0].numel(),
        "webp": {"bits_per_image": bits, "psnr": codec_at_bits(curve, bits)},
    }
    return values, curve


def add_training_likelihood(
    values: dict[str, Any], priors: Sequence[PixelSNAIL], codes: CodeStore
) -> None:
    """Add to the measures what the codes of training images cost, and by how much more others do.

    Args:
        values: From `evaluate_pipeline`; each level gets `train_nats_per_code`,
            `train_bits_per_code` and `overfitting_gap`: held out less training, nats a code.
        codes: Of images that the priors were trained on.
    """
    for level, (prior, own) in enumerate(zip(priors, values["levels"].values(), strict=True)):
        found = prior_likelihood(prior, codes_in_order(codes, _BATCH), level)
        own["train_nats_per_code"] = found.nats_per_code
        own["train_bits_per_code"] = found.bits_per_code
        own["overfitting_gap"] = own["nats_per_code"] - found.nats_per_code
    values["train_images"] = len(codes)


def spread_evenly(images: Tensor, most: int) -> Tensor:
    """At most so many of the images `[N, ...]`."""
    if len(images) <= most:
        return images
    return images[torch.linspace(0, len(images) - 1, most).long()]


def _maps(codes: CodeStore, level: int) -> Iterator[Tensor]:
    return (maps[level] for maps, _ in codes_in_order(codes, _BATCH))
