"""An evaluation for people: as lines on the terminal, and as one HTML file with its pictures."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vqvae2_fast.console.words import number, together
from vqvae2_fast.metrics.codecs import CODECS
from vqvae2_fast.metrics.distances import MEASURES
from vqvae2_fast.metrics.reconstruction import PairMeasures, Reconstruction
from vqvae2_fast.report.html import Section, write_report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vqvae2_fast.metrics.accuracy import Accuracy
    from vqvae2_fast.metrics.estimates import Estimate
    from vqvae2_fast.metrics.results import (
        CasScore,
        CodecQuality,
        Distances,
        Evaluation,
        LevelCost,
        Rejection,
    )

__all__ = ["code_costs", "evaluation_lines", "reconstruction_text", "write_evaluation"]

_ROWS = {
    "floor": "real images against the reference (the floor)",
    "reconstructed": "real images against the reference's reconstructions",
    "sampled": "samples against the reference",
    "sampled_vs_reconstructed": "samples against the reference's reconstructions (FID*)",
}
_PAIR_LABELS = tuple(measure.metadata["label"] for measure in fields(PairMeasures))
_ARROWS = {"lower": "↓", "higher": "↑"}


def evaluation_lines(found: Evaluation) -> list[str]:
    """The measures in words."""
    lines = [
        f"reconstruction of {found.images:,} held-out images: "
        f"{reconstruction_text(found.reconstruction)}"
    ]
    lines += [_line_of_level(name, level) for name, level in found.levels.items()]
    codecs = "; ".join(_codec(name, codec) for name, codec in found.codecs.items())
    lines.append(
        f"all levels together: {found.bits_per_image:,.0f} bits per image, marginal entropy "
        f"{found.marginal_bits_per_image:,.0f}; at that rate {codecs}"
    )
    lines += [
        f"files of {own.images:,} images with {together(own.levels)}: "
        f"{own.file_bits_per_image:,.0f} bits each ({own.bits_per_image:,.0f} of codes, promised "
        f"{own.promised_bits_per_image:,.0f}), {reconstruction_text(own.measured)}"
        for own in found.compressed or ()
    ]
    for network in (found.distances or {}).values():
        lines += _lines_of_distances(network, found.sampled_images or 0)
    for row in found.cas or ():
        lines.append(
            f"accuracy on real held-out images after training on {row.images:,} {row.trained_on} "
            f"images, in %: {_accuracy(row.tested_on['real'])}"
        )
    return lines


def reconstruction_text(found: Reconstruction) -> str:
    """The errors of reconstructions in words."""
    text = f"{found.psnr:.2f} dB (MSE {found.mse_unit:.5f} in [0, 1], {found.mse:.5f} in [-1, 1])"
    for measure in fields(found)[len(fields(Reconstruction)) :]:
        value = getattr(found, measure.name)
        if value is not None:
            text += f", {measure.metadata['label']} {value:{measure.metadata['form']}}"
    return text


def _line_of_level(name: str, level: LevelCost) -> str:
    line = (
        f"{name}: {level.codes_used} codes used, perplexity {level.perplexity:.0f}, "
        f"{level.bits_per_image:,.0f} bits per image ({level.nats_per_code:.3f} nats per code); "
        f"marginal entropy {level.marginal_bits_per_image:,.0f}"
    )
    if level.overfitting_gap is None:
        return line
    return (
        f"{line}; training images {level.train_nats_per_code:.3f} nats per code, gap (held out "
        f"minus training) {level.overfitting_gap:+.3f}"
    )


def _lines_of_distances(network: Distances, images: int) -> list[str]:
    floor, sampled = network.rows["floor"], network.rows["sampled"]
    lines = [
        f"{network.label(measure.name)} of {images:,} samples: {_interval(sampled[measure.name])}; "
        f"real images against real ones {_interval(floor[measure.name])}"
        for measure in MEASURES
        if measure.headline and measure.name in sampled
    ]
    if network.left_out:
        lines.append(f"not measured, for which more images are needed: {_left_out(network)}")
    return lines


def write_evaluation(
    path: Path, found: Evaluation, pictures: Mapping[str, Path], *, title: str
) -> None:
    """Write report.html.

    Args:
        pictures: By name: reconstructions, rate, and samples, best, trade_off where there are any.
    """
    lead = f"{found.images:,} held-out images"
    lead += f", {found.sampled_images:,} samples." if found.sampled_images else "."
    if found.distances or found.cas:
        lead += (
            " Intervals are 95 %, by the jackknife over ten groups of images (kernel distance: "
            "over blocks; accuracy: Wilson's)."
        )
    write_report(
        path,
        title,
        lead,
        [
            *_samples(found, pictures),
            _reconstructions(found, pictures["reconstructions"]),
            code_costs(found),
            _quality_against_bits(found, pictures["rate"]),
        ],
        "vqvae2-fast evaluate",
    )


def _samples(found: Evaluation, pictures: Mapping[str, Path]) -> list[Section]:
    sections = []
    if "samples" in pictures:
        sections.append(
            Section(
                "Samples",
                "Drawn from the model as it is: temperature 1, no guidance, nothing rejected. "
                "Samples that were drawn before, in a folder of their own, are as they are there.",
                picture=pictures["samples"],
            )
        )
    sections += [_distances(name, own) for name, own in (found.distances or {}).items()]
    if found.cas:
        sections.append(_cas(found.cas))
    if found.rejection is not None:
        sections += _rejection(found.rejection, found.distances or {}, pictures)
    return sections


def _distances(name: str, found: Distances) -> Section:
    shown = [measure for measure in MEASURES if measure.name in found.rows["floor"]]
    text = (
        f"Features of {name}, {found.images_per_second:.0f} images per second. Distances depend on "
        "the number of images, so compare only rows of one table. An arrow shows which way is "
        "better."
    )
    if found.left_out:
        text += f" Not measured, for which more images are needed: {_left_out(found)}."
    return Section(
        f"Distances in {name}",
        text,
        header=("", *(f"{found.label(one.name)} {_ARROWS[one.better]}" for one in shown)),
        rows=[
            [_ROWS[row], *(_interval(own[measure.name]) for measure in shown)]
            for row, own in found.rows.items()
        ],
    )


def _left_out(found: Distances) -> str:
    return ", ".join(f"{found.label(name)} ({count:,})" for name, count in found.left_out.items())


def _cas(rows: list[CasScore]) -> Section:
    tests = list(rows[0].tested_on)
    return Section(
        "Classification accuracy score",
        "A classifier is trained on each kind of images, by one recipe and on equally many images; "
        "its accuracy is measured on held-out images. On reconstructed images the decoder has no "
        "part in the difference.",
        header=(
            "trained on",
            "images",
            *(f"top 1 on {test}, %" for test in tests),
            *(f"top 5 on {test}, %" for test in tests),
        ),
        rows=[
            [
                row.trained_on,
                str(row.images),
                *(_accuracy(row.tested_on[test]) for test in tests),
                *(f"{100 * row.tested_on[test].top5:.2f}" for test in tests),
            ]
            for row in rows
        ],
    )


def _rejection(
    found: Rejection, distances: Mapping[str, Distances], pictures: Mapping[str, Path]
) -> list[Section]:
    shown = [measure for measure in MEASURES if measure.panel]
    header = ["share kept", "images", "accuracy, %"]
    header += [own.label(one.name) for own in distances.values() for one in shown]
    rows = []
    for point in found.points:
        row = [f"{point.share:g}", str(point.images), f"{100 * point.accuracy:.1f}"]
        for network in distances:
            own = point.measures[network]
            row += [number(own[one.name].value) if one.name in own else "" for one in shown]
        rows.append(row)
    return [
        Section(
            "Rejection by a classifier",
            "Of each class, the share of samples is kept to which a classifier gives the highest "
            "probability of the class. A smaller number of images alone raises a Fréchet distance: "
            "the dotted line is that of equally many real images. Accuracy is by "
            f"{found.accuracy_by}.",
            header=header,
            rows=rows,
            picture=pictures["trade_off"],
        ),
        Section("Samples that the classifier is surest about", picture=pictures["best"]),
    ]


def _reconstructions(found: Evaluation, picture: Path) -> Section:
    kinds = {"held out": found.reconstruction}
    if found.train_reconstruction is not None:
        kinds["training"] = found.train_reconstruction
    rows = [[name, *_pair_measures(own)] for name, own in kinds.items()]
    return Section(
        "Reconstructions",
        "Held-out images, each above what its codes decode to.",
        **_measured(("images", *_PAIR_LABELS), rows),
        picture=picture,
    )


def code_costs(found: Evaluation) -> Section:
    rows = [
        [
            name,
            f"{level.codes:,}",
            f"{level.codes_used:,}",
            f"{level.perplexity:.1f}",
            f"{level.nats_per_code:.4f}",
            _or_empty(level.train_nats_per_code, ".4f"),
            _or_empty(level.overfitting_gap, "+.4f"),
            f"{level.bits_per_code:.3f}",
            f"{level.marginal_bits_per_code:.3f}",
            f"{level.bits_per_image:,.0f}",
            f"{level.marginal_bits_per_image:,.0f}",
        ]
        for name, level in found.levels.items()
    ]
    sums = (f"{found.bits_per_image:,.0f}", f"{found.marginal_bits_per_image:,.0f}")
    header = (
        "level",
        "codes per image",
        "codes used",
        "perplexity",
        "nats per code",
        "in training",
        "gap",
        "bits per code",
        "marginal",
        "bits per image",
        "marginal bits per image",
    )
    return Section(
        "What the codes cost",
        f"Under the priors the codes cost {found.bits_per_dim:.4f} bits per pixel and channel. "
        "Marginal entropy is what they would cost by the frequency of each code alone. The gap "
        "is what a code of a held-out image costs more than one of a training image.",
        **_measured(header, [*rows, ["together", *[""] * 8, *sums]]),
    )


def _quality_against_bits(found: Evaluation, picture: Path) -> Section:
    codecs = ", ".join(_codec(name, codec) for name, codec in found.codecs.items())
    files = [
        [
            together(own.levels),
            f"{own.images:,}",
            f"{own.promised_bits_per_image:,.1f}",
            f"{own.bits_per_image:,.1f}",
            f"{own.file_bits_per_image:,.1f}",
            *_pair_measures(own.measured),
        ]
        for own in found.compressed or ()
    ]
    header = (
        "levels in the file",
        "images",
        "promised bits per image",
        "bits of codes",
        "bits of the file",
        *_PAIR_LABELS,
    )
    return Section(
        "Quality against bits",
        f"At {found.bits_per_image:,.0f} bits per image this model reaches "
        f"{found.reconstruction.psnr:.2f} dB, {codecs}. Headers of files are not counted here. "
        "Below are real files of the codec; levels that a file leaves out are drawn from the "
        "priors when it is decoded.",
        **_measured(header, files),
        picture=picture,
    )


def _pair_measures(found: Any) -> list[str]:
    """A column for each of _PAIR_LABELS; empty where it was not measured."""
    return [
        _or_empty(getattr(found, measure.name, None), measure.metadata["form"])
        for measure in fields(PairMeasures)
    ]


def _measured(header: Sequence[str], rows: list[list[str]]) -> dict[str, Any]:
    """A table without the columns that are empty in all rows, because they were not measured."""
    kept = [n for n in range(len(header)) if not rows or any(row[n] for row in rows)]
    return {"header": [header[n] for n in kept], "rows": [[row[n] for n in kept] for row in rows]}


def _codec(name: str, found: CodecQuality) -> str:
    name = CODECS[name].name
    return f"{name} needs more bits" if found.psnr is None else f"{name} {found.psnr:.2f} dB"


def _interval(estimate: Estimate) -> str:
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _accuracy(found: Accuracy) -> str:
    return f"{100 * found.top1:.2f} [{100 * found.low:.2f}, {100 * found.high:.2f}]"


def _or_empty(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
