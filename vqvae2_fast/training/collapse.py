"""The alarm for a codebook that collapses: seen early, it costs minutes; late, the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.models.configs import level_names
from vqvae2_fast.modules.level_quantizer import learns_by_averages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vqvae2_fast.models.configs import VQVAE2Config

__all__ = ["collapsed_levels"]

# Shares of the codes that could be used. docs/reports has levels on both sides of them: a top level
# that is lost uses 1 to 19 of 512 codes, one that lives more than 400 with a perplexity above 200.
_FEW, _UNEVEN = 0.1, 0.05


def collapsed_levels(
    config: VQVAE2Config, metrics: Mapping[str, float], images: int
) -> dict[str, str]:
    """What is wrong with each level that has collapsed, and what to do, by the level's name.

    Args:
        metrics: LEVEL_codes_used and LEVEL_perplexity (2 to the entropy of the codes in bits) of
            held-out images.
        images: How many there were.
    """
    found = {}
    levels = zip(level_names(config.num_levels), config.level_sizes, config.quantizers, strict=True)
    for name, (height, width), quantizer in levels:
        used, perplexity = int(metrics[f"{name}_codes_used"]), metrics[f"{name}_perplexity"]
        possible = min(config.num_embeddings, images * height * width)
        if used >= _FEW * possible and perplexity >= _UNEVEN * possible:
            continue
        what = f"use only {used} of the {config.num_embeddings} codes of level {name}"
        if used == 1:
            what += ", which therefore says nothing"
        elif used >= _FEW * possible:
            what = (
                f"use the {config.num_embeddings} codes of level {name} so unevenly that their "
                f"perplexity is only {perplexity:.1f}"
            )
        if learns_by_averages(quantizer):
            remedy = (
                f"Raise restart={config.restart:g}, which gives unused codes another chance, or "
                f"quantize_after={config.quantize_after}, or lower "
            )
        else:
            remedy = f"Replace quantizer={quantizer}, or lower "
        found[name] = (
            f"the held-out images {what}: its codebook has collapsed. {remedy}learning_rate."
        )
    return found
