"""All measures of one set of images against another, in the features of one network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from vqvae2_fast.metrics.frechet import frechet_distance, least_images
from vqvae2_fast.metrics.inception_score import inception_score
from vqvae2_fast.metrics.kernel_distance import LEAST_IMAGES, kernel_distance
from vqvae2_fast.metrics.neighbours import Neighbours, neighbour_measures

if TYPE_CHECKING:
    from vqvae2_fast.metrics.estimates import Estimate
    from vqvae2_fast.metrics.feature_set import FeatureSet

__all__ = ["compare_sets", "least_for_distances"]


def compare_sets(
    real: FeatureSet, fake: FeatureSet, *, k: int = 5, intervals: bool = True
) -> dict[str, Estimate]:
    """`frechet`, `spatial`, `kernel`, `score`, `precision`, `recall`, `density`, `coverage`.

    A measure that needs more images than there are is left out: `least_for_distances` says which.

    Args:
        k: Neighbours that a ball reaches to.
        intervals: Without them the Fréchet distances take an eleventh of the time.
    """
    images = min(len(real), len(fake))
    found: dict[str, Estimate] = {}
    for name, part in (("frechet", "features"), ("spatial", "spatial")):
        if images >= least_images(getattr(real, part).shape[1]):
            found[name] = frechet_distance(
                real.moments(part), fake.moments(part), interval=intervals
            )
    if images >= LEAST_IMAGES:
        found["kernel"] = kernel_distance(real.tensor(), fake.tensor())
        found["score"] = inception_score([fake.tensor("log_probabilities")])
        near = neighbour_measures(real.tensor(), fake.tensor(), k=k)
        found |= {name: getattr(near, name) for name in Neighbours.__dataclass_fields__}
    return found


def least_for_distances(real: FeatureSet) -> dict[str, int]:
    """Images of each set from which on a measure is made."""
    least = {
        "frechet": least_images(real.features.shape[1]),
        "spatial": least_images(real.spatial.shape[1]),
    }
    names = ("kernel", "score", *Neighbours.__dataclass_fields__)
    return {**least, **dict.fromkeys(names, LEAST_IMAGES)}


def as_json(estimates: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: asdict(estimate) for name, estimate in estimates.items()}
