"""Measures of one set of images against another, in the features of one network: their table.

A measure is added here, by a row of `MEASURES`. What compares sets, prints values, writes reports
and draws curves reads the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from vqvae2_fast.console import Progress
from vqvae2_fast.metrics.results import Distances, RejectionPoint
from vqvae2_fast.metrics.set_measures import (
    LEAST_FOR_KERNEL,
    LEAST_FOR_NEIGHBOURS,
    LEAST_FOR_SCORE,
    Neighbours,
    frechet_distance,
    inception_score,
    kernel_distance,
    least_images,
    neighbour_measures,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from vqvae2_fast.metrics.estimates import Estimate
    from vqvae2_fast.metrics.features import FeatureSet

__all__ = [
    "MEASURES",
    "PAIRS",
    "Comparison",
    "Measure",
    "compare_all",
    "compare_sets",
    "labels_in",
    "least_for_distances",
    "rejection_curve",
]


# The sets that `compare_all` compares: the real one, or what stands for it, comes first.
PAIRS = {
    "floor": ("reference", "other"),
    "reconstructed": ("reconstructed", "other"),
    "sampled": ("reference", "sampled"),
    "sampled_vs_reconstructed": ("reconstructed", "sampled"),
}


@dataclass(frozen=True)
class Comparison:
    """Two sets of features, and how they are compared.

    Args:
        k: The neighbour that the balls of precision, recall, density and coverage reach to.
        intervals: Without them Fréchet distances take an eleventh of the time.
    """

    real: FeatureSet
    fake: FeatureSet
    k: int = 5
    intervals: bool = True

    @cached_property
    def neighbours(self) -> Neighbours:
        """Four measures share this result, which takes most of their time."""
        return neighbour_measures(self.real.tensor(), self.fake.tensor(), k=self.k)

    def frechet(self, part: str) -> Estimate:
        return frechet_distance(
            self.real.moments(part), self.fake.moments(part), interval=self.intervals
        )


@dataclass(frozen=True)
class Measure:
    """A measure of a set of images against a real one, or of the set alone.

    Args:
        name: Its key in `metrics.json`.
        label: What reports call it; `{network}` stands for the network's name.
        better: Which values are better.
        least_images: The number of images in each set below which it means nothing, given the
            features of the real set.
        estimate: Its value and interval. None of the measures has a unit.
        inception_label: Its label in the features of FID's Inception, if it has a special name
            there.
        panel: Measures with the same panel share one in the plot of rejection; those without one
            are left out there.
        headline: Whether `evaluate` prints it.
    """

    name: str
    label: str
    better: Literal["lower", "higher"]
    least_images: Callable[[FeatureSet], int]
    estimate: Callable[[Comparison], Estimate]
    inception_label: str | None = None
    panel: str | None = None
    headline: bool = False

    def label_in(self, network: str) -> str:
        """The measure's name in the features of a network."""
        if network == "Inception" and self.inception_label:
            return self.inception_label
        return self.label.format(network=network)


MEASURES = (
    Measure(
        "frechet",
        "FD-{network}",
        "lower",
        lambda real: least_images(real.features.shape[1]),
        lambda sets: sets.frechet("features"),
        inception_label="FID",
        panel="frechet",
        headline=True,
    ),
    Measure(
        "spatial",
        "sFD-{network}",
        "lower",
        lambda real: least_images(real.spatial.shape[1]),
        lambda sets: sets.frechet("spatial"),
        inception_label="sFID",
    ),
    Measure(
        "kernel",
        "KD-{network}",
        "lower",
        lambda real: LEAST_FOR_KERNEL,
        lambda sets: kernel_distance(sets.real.tensor(), sets.fake.tensor()),
        inception_label="KID",
        panel="kernel",
        headline=True,
    ),
    Measure(
        "score",
        "score-{network}",
        "higher",
        lambda real: LEAST_FOR_SCORE,
        lambda sets: inception_score([sets.fake.tensor("log_probabilities")]),
        inception_label="Inception score",
        panel="score",
    ),
    Measure(
        "precision",
        "precision",
        "higher",
        lambda real: LEAST_FOR_NEIGHBOURS,
        lambda sets: sets.neighbours.precision,
        panel="precision and recall",
    ),
    Measure(
        "recall",
        "recall",
        "higher",
        lambda real: LEAST_FOR_NEIGHBOURS,
        lambda sets: sets.neighbours.recall,
        panel="precision and recall",
    ),
    Measure(
        "density",
        "density",
        "higher",
        lambda real: LEAST_FOR_NEIGHBOURS,
        lambda sets: sets.neighbours.density,
    ),
    Measure(
        "coverage",
        "coverage",
        "higher",
        lambda real: LEAST_FOR_NEIGHBOURS,
        lambda sets: sets.neighbours.coverage,
    ),
)


def compare_sets(
    real: FeatureSet,
    fake: FeatureSet,
    *,
    k: int = 5,
    intervals: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Estimate]:
    """All measures by name, in the order of `MEASURES`.

    A measure that needs more images than there are is left out; `least_for_distances` says how
    many each needs.

    Args:
        k, intervals: See `Comparison`.
        progress: Called after each measure, left out or not.
    """
    sets = Comparison(real, fake, k, intervals)
    images = min(len(real), len(fake))
    found = {}
    for measure in MEASURES:
        if images >= measure.least_images(real):
            found[measure.name] = measure.estimate(sets)
        progress()
    return found


def least_for_distances(real: FeatureSet) -> dict[str, int]:
    """The number of images that each measure needs in each set."""
    return {measure.name: measure.least_images(real) for measure in MEASURES}


def compare_all(
    sets: Mapping[str, FeatureSet],
    network: str,
    *,
    k: int = 5,
    progress: Progress | None = None,
) -> Distances:
    """Every pair of `PAIRS` compared.

    Args:
        sets: `reference`, `other`, `reconstructed` and `sampled`, all in the features of `network`.
        k: See `Comparison`.
    """
    total = len(PAIRS) * len(MEASURES)
    with (progress or Progress(quiet=True)).task(f"distances in {network}", total) as task:
        rows = {
            name: compare_sets(sets[real], sets[fake], k=k, progress=task.advance)
            for name, (real, fake) in PAIRS.items()
        }
    least = least_for_distances(sets["reference"])
    return Distances(
        names=labels_in(network),
        rows=rows,
        left_out={name: count for name, count in least.items() if name not in rows["sampled"]},
        images_per_second=sets["sampled"].images_per_second,
    )


def labels_in(network: str) -> dict[str, str]:
    """The names of the measures in the features of a network, where they differ from their own."""
    labels = {measure.name: measure.label_in(network) for measure in MEASURES}
    return {name: label for name, label in labels.items() if label != name}


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
