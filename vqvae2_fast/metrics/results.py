"""What an evaluation finds, as plain records: written to `metrics.json`, shown by reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from vqvae2_fast.console.tables import html_summary
from vqvae2_fast.console.words import number
from vqvae2_fast.metrics.codecs import CODECS

if TYPE_CHECKING:
    from vqvae2_fast.metrics.accuracy import Accuracy
    from vqvae2_fast.metrics.codecs import CodecPoint
    from vqvae2_fast.metrics.estimates import Estimate
    from vqvae2_fast.metrics.reconstruction import Reconstruction

__all__ = [
    "CasScore",
    "CodecQuality",
    "CompressedFiles",
    "Distances",
    "Evaluation",
    "LevelCost",
    "Rejection",
    "RejectionPoint",
    "as_json",
]


@dataclass(frozen=True)
class LevelCost:
    """One level's codes: how many an image has, how many are in use, what they cost.

    Costs are those under the prior; marginal costs are those by the frequency of each code alone.
    The gap is how much more a code of a held-out image costs than one of a training image, in nats.
    """

    codes: int
    codes_used: int
    perplexity: float
    marginal_bits_per_code: float
    marginal_bits_per_image: float
    nats_per_code: float
    bits_per_code: float
    bits_per_image: float
    train_nats_per_code: float | None = None
    train_bits_per_code: float | None = None
    overfitting_gap: float | None = None


@dataclass(frozen=True)
class CodecQuality:
    """Quality of an image codec at a number of bits per image, headers not counted.

    Args:
        measures: By the names of `PairMeasures`, those that were measured; only `psnr`, which is
            None, if the codec needs more bits than that.
    """

    bits_per_image: float
    measures: dict[str, float | None]

    @property
    def psnr(self) -> float | None:
        return self.measures["psnr"]


@dataclass(frozen=True)
class CompressedFiles:
    """Real `.vq2` files: what they take, and the errors of what they decode to.

    Args:
        levels: The levels that are in the files, coarse to fine; the others were drawn.
        images: How many images were compressed.
        promised_bits_per_image: Σ −log₂ p of the codes of these levels.
        bits_per_image: What the range coder wrote for them.
        file_bits_per_image: Whole files, with headers, lengths and labels.
    """

    levels: tuple[str, ...]
    images: int
    promised_bits_per_image: float
    bits_per_image: float
    file_bits_per_image: float
    measured: Reconstruction


@dataclass(frozen=True)
class Distances:
    """Measures of pairs of sets in the features of one network.

    Args:
        names: Labels of the measures, where they differ from their names.
        rows: By pair of sets (see `distances.PAIRS`), then by measure.
        left_out: Measures that need more images, and how many.
        images_per_second: Speed of the network.
    """

    names: dict[str, str]
    rows: dict[str, dict[str, Estimate]]
    left_out: dict[str, int]
    images_per_second: float

    def label(self, measure: str) -> str:
        return self.names.get(measure, measure)


@dataclass(frozen=True)
class CasScore:
    """Accuracies of a classifier that was trained on one kind of images, by kind of test images."""

    trained_on: str
    images: int
    tested_on: dict[str, Accuracy]


@dataclass(frozen=True)
class RejectionPoint:
    """What the share of samples that a classifier likes best measures.

    Args:
        accuracy: Share of these samples that a second classifier sees in their class.
        least_probability: Lowest probability of its class that a kept sample has.
        measures: By network, then by measure, against the reference.
        floor: The same of as many real images.
    """

    share: float
    images: int
    accuracy: float
    least_probability: float
    measures: dict[str, dict[str, Estimate]]
    floor: dict[str, dict[str, Estimate]]


@dataclass(frozen=True)
class Rejection:
    """Points of the rejection curve, and who judged their accuracy."""

    points: list[RejectionPoint]
    accuracy_by: str


@dataclass(frozen=True)
class Evaluation:
    """All that `evaluate` finds. Fields with the default None were not asked for.

    Args:
        images: How many held-out images the first fields measure.
        codecs: Image codecs at `bits_per_image`, by name.
        curves: Their curves of rate and quality, by name.
        compressed: Files with the coarsest level alone, then with one more, to all levels.
        distances: By network.
    """

    images: int
    reconstruction: Reconstruction
    levels: dict[str, LevelCost]
    bits_per_image: float
    marginal_bits_per_image: float
    bits_per_dim: float
    codecs: dict[str, CodecQuality]
    curves: dict[str, list[CodecPoint]] = field(default_factory=dict)
    train_images: int | None = None
    train_reconstruction: Reconstruction | None = None
    sampled_images: int | None = None
    distances: dict[str, Distances] | None = None
    cas: list[CasScore] | None = None
    rejection: Rejection | None = None
    compressed: list[CompressedFiles] | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows: the reconstructions, and what the codes of each level cost."""
        at_rate = [
            f"{CODECS[name].name} {'needs more' if own.psnr is None else f'{own.psnr:.2f} dB'}"
            for name, own in self.codecs.items()
        ]
        lead = (
            f"{self.images:,} held-out images: reconstructed at {self.reconstruction.psnr:.2f} dB, "
            f"{self.bits_per_image:,.0f} bits per image under the priors, "
            f"{self.marginal_bits_per_image:,.0f} by how often each code occurs. At that number of "
            f"bits: {', '.join(at_rate) or 'no codec was measured'}."
        )
        rows = [
            [own.name.replace("_", " "), *(number(value) for value in values)]
            for own in fields(LevelCost)
            if None not in (values := [getattr(level, own.name) for level in self.levels.values()])
        ]
        return html_summary(lead, ("", *self.levels), rows)

    def as_json(self) -> dict[str, Any]:
        """The content of `metrics.json`, where each codec has its own key."""
        values: dict[str, Any] = as_json(self)
        for name, own in values.pop("codecs").items():
            values[name] = {"bits_per_image": own["bits_per_image"], **own["measures"]}
        return values


def as_json(value: Any) -> Any:
    """Records as dictionaries, without the fields that are None by default and stayed so.

    A number that JSON cannot hold (NaN of an empty class, the infinite PSNR of exact images)
    becomes None.
    """
    if is_dataclass(value):
        pairs = ((own, getattr(value, own.name)) for own in fields(value))
        return {
            own.name: as_json(item)
            for own, item in pairs
            if not (item is None and own.default is None)
        }
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
