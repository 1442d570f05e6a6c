"""The rejection curve: what the samples that a classifier likes best measure, by the share kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.console import Progress
from vqvae2_fast.metrics.distances import MEASURES, compare_sets
from vqvae2_fast.metrics.results import RejectionPoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vqvae2_fast.metrics.feature_set import FeatureSet

__all__ = ["rejection_curve"]


def rejection_curve(
    kept: Mapping[float, Tensor],
    probabilities: Tensor,
    correct: Tensor,
    features: Mapping[str, Mapping[str, FeatureSet]],
    *,
    k: int = 5,
    progress: Progress | None = None,
) -> list[RejectionPoint]:
    """A point for each share of the samples.

    Args:
        kept: The samples that are kept, int64 `[N]`, by their share.
        probabilities: What the classifier gives the class of each sample, `[M]`.
        correct: 1 for each sample that a second classifier sees in its class, else 0, `[M]`.
        features: By network, of the sets `reference`, `other` and `sampled`.
        k: See `Comparison`.
    """
    points = []
    total = 2 * len(kept) * len(features) * len(MEASURES)
    with (progress or Progress(quiet=True)).task("rejection curve", total) as task:
        for share, rows in kept.items():
            # One copy of rows at a time: nothing holds those of the last share.
            measures = {
                network: compare_sets(
                    sets["reference"], sets["sampled"].select(rows), k=k, progress=task.advance
                )
                for network, sets in features.items()
            }
            # A Fréchet distance rises when there are fewer images, whatever they are.
            floor = {
                network: compare_sets(
                    sets["reference"],
                    sets["other"].first(len(rows)),
                    k=k,
                    intervals=False,
                    progress=task.advance,
                )
                for network, sets in features.items()
            }
            points.append(
                RejectionPoint(
                    share=share,
                    images=len(rows),
                    accuracy=float(correct[rows].double().mean()),
                    least_probability=float(probabilities[rows].min()),
                    measures=measures,
                    floor=floor,
                )
            )
    return points
