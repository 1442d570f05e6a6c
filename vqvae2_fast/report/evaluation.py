"""The report of `vqvae2-fast evaluate`: its measures as tables, with the pictures, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.report.html import Section, write_report

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["evaluation_lines", "write_evaluation"]

_ROWS = {
    "floor": "real images against the reference (the floor)",
    "reconstructed": "real images against the reference's reconstructions",
    "sampled": "samples against the reference",
    "sampled_vs_reconstructed": "samples against the reference's reconstructions (FID*)",
}


def evaluation_lines(values: dict[str, Any]) -> list[str]:
    """The measures in words."""
    error = values["reconstruction"]
    lines = [
        f"reconstruction of {values['images']} held-out images: {error['psnr']:.2f} dB (MSE "
        f"{error['mse_unit']:.5f} in [0, 1], {error['mse']:.5f} in [-1, 1])"
    ]
    if error.get("ssim") is not None:
        perceptual = "" if error["lpips"] is None else f", LPIPS {error['lpips']:.4f}"
        lines.append(f"SSIM {error['ssim']:.4f}{perceptual}")
    for name, level in values["levels"].items():
        line = f"{name}: {level['codes_used']} codes used, perplexity {level['perplexity']:.0f}"
        lines.append(
            f"{line}, {level['bits_per_image']:.0f} bits an image ({level['nats_per_code']:.3f} "
            f"nats a code); marginal entropy {level['marginal_bits_per_image']:.0f}"
        )
        if "overfitting_gap" in level:
            lines[-1] += (
                f"; training images {level['train_nats_per_code']:.3f} nats a code, "
                f"{level['overfitting_gap']:+.3f} held out"
            )
    webp = values["webp"]["psnr"]
    beside = "cannot go so low" if webp is None else f"reaches {webp:.2f} dB there"
    lines.append(
        f"all levels together: {values['bits_per_image']:.0f} bits an image, marginal entropy "
        f"{values['marginal_bits_per_image']:.0f}; WebP {beside}"
    )
    return lines


def write_evaluation(
    path: Path, values: Mapping[str, Any], pictures: Mapping[str, Path], *, title: str
) -> None:
    """Write report.html.

    Args:
        values: What `evaluate` writes into metrics.json.
        pictures: By name: reconstructions, rate, and samples, best, trade_off where there are any.
    """
    sections = [*_samples(values, pictures), *_images(values, pictures)]
    write_report(
        path,
        title,
        f"{values['images']} held-out images, {values.get('sampled_images', 0)} samples. Intervals "
        "are 95 %, by the jackknife over ten groups of images (kernel distance: over blocks; "
        "accuracy: Wilson's).",
        sections,
        "vqvae2-fast evaluate",
    )


def _samples(values: Mapping[str, Any], pictures: Mapping[str, Path]) -> list[Section]:
    sections = []
    if "samples" in pictures:
        sections.append(
            Section(
                "Samples",
                "Drawn as the plain model has them: temperature 1, no guidance, "
                "nothing rejected. With --samples, as those were drawn.",
                picture=pictures["samples"],
            )
        )
    for name, found in values.get("distances", {}).items():
        sections += _distances(name, found)
    if "cas" in values:
        sections.append(_cas(values["cas"]))
    if "rejection" in values:
        sections += _rejection(values["rejection"], pictures)
    return sections


def _distances(name: str, found: Mapping[str, Any]) -> list[Section]:
    names = found["names"]
    measures = list(found["rows"]["floor"])
    rows = [
        [_ROWS[row], *(_interval(own[m]) for m in measures)] for row, own in found["rows"].items()
    ]
    text = (
        f"Features of {name}, {found['images_per_second']:.0f} images a second. Distances depend "
        "on the number of images; only rows of one table compare."
    )
    if found["left_out"]:
        wanted = ", ".join(f"{names.get(m, m)} ({n})" for m, n in found["left_out"].items())
        text += f" Not measured for want of images (least number): {wanted}."
    header = ("", *(names.get(m, m) for m in measures))
    return [Section(f"Distances in {name}", text, header=header, rows=rows)]


def _cas(rows: list[dict[str, Any]]) -> Section:
    tests = list(rows[0]["tested_on"])
    return Section(
        "Classification accuracy score",
        "A classifier trained on each kind of images, by one recipe and on equal numbers; its "
        "accuracy on held-out images. The column of reconstructed images takes the decoder out.",
        header=(
            "trained on",
            "images",
            *(f"top 1 on {t}, %" for t in tests),
            *(f"top 5 on {t}, %" for t in tests),
        ),
        rows=[
            [
                row["trained_on"],
                str(row["images"]),
                *(
                    f"{100 * row['tested_on'][t]['top1']:.2f} "
                    f"[{100 * row['tested_on'][t]['low']:.2f}, "
                    f"{100 * row['tested_on'][t]['high']:.2f}]"
                    for t in tests
                ),
                *(f"{100 * row['tested_on'][t]['top5']:.2f}" for t in tests),
            ]
            for row in rows
        ],
    )


def _rejection(found: Mapping[str, Any], pictures: Mapping[str, Path]) -> list[Section]:
    points = found["points"]
    networks = list(points[0]["measures"])
    measures = ("frechet", "kernel", "score", "precision", "recall")
    header = ["share kept", "images", "accuracy, %"]
    header += [f"{m}, {n}" for n in networks for m in measures]
    rows = []
    for point in points:
        row = [f"{point['share']:g}", str(point["images"]), f"{100 * point['accuracy']:.1f}"]
        for network in networks:
            own = point["measures"][network]
            row += [f"{own[m]['value']:.4g}" if m in own else "" for m in measures]
        rows.append(row)
    return [
        Section(
            "Rejection by a classifier",
            "The share of each class that a classifier gives the highest probability of its class. "
            "Fewer images alone raise a Fréchet distance: the dotted line is real images in the "
            f"place of as many samples. Accuracy is by {found['accuracy_by']}.",
            header=header,
            rows=rows,
            picture=pictures["trade_off"],
        ),
        Section("Samples that the classifier is surest about", picture=pictures["best"]),
    ]


def _images(values: Mapping[str, Any], pictures: Mapping[str, Path]) -> list[Section]:
    kinds = {"held out": values["reconstruction"]}
    if "train_reconstruction" in values:
        kinds["training"] = values["train_reconstruction"]
    errors = [
        [
            name,
            f"{e['mse_unit']:.5f}",
            f"{e['mse']:.5f}",
            f"{e['psnr']:.2f}",
            _or_empty(e.get("ssim")),
            _or_empty(e.get("lpips")),
        ]
        for name, e in kinds.items()
    ]
    levels = [
        [
            name,
            str(level["codes"]),
            f"{level['codes_used']}",
            f"{level['perplexity']:.1f}",
            f"{level['nats_per_code']:.4f}",
            _or_empty(level.get("train_nats_per_code")),
            _or_empty(level.get("overfitting_gap"), "+.4f"),
            f"{level['bits_per_code']:.3f}",
            f"{level['marginal_bits_per_code']:.3f}",
            f"{level['bits_per_image']:.0f}",
            f"{level['marginal_bits_per_image']:.0f}",
        ]
        for name, level in values["levels"].items()
    ]
    levels.append(
        [
            "together",
            *[""] * 8,
            f"{values['bits_per_image']:.0f}",
            f"{values['marginal_bits_per_image']:.0f}",
        ]
    )
    codecs = ", ".join(_codec(name, values[name.lower()]) for name in ("WebP", "JPEG"))
    return [
        Section(
            "Reconstructions",
            "Held-out images, each above what its codes decode to.",
            header=(
                "images",
                "MSE, pixels in [0, 1]",
                "MSE, pixels in [-1, 1]",
                "PSNR, dB",
                "SSIM",
                "LPIPS",
            ),
            rows=errors,
            picture=pictures["reconstructions"],
        ),
        Section(
            "What the codes cost",
            f"Under the priors, {values['bits_per_dim']:.4f} bits a pixel and channel for the "
            "codes. Marginal entropy is what the frequency of each code alone would give. The "
            "gap is what held-out codes cost more than training ones.",
            header=(
                "level",
                "codes an image",
                "codes used",
                "perplexity",
                "nats a code",
                "in training",
                "gap",
                "bits a code",
                "marginal",
                "bits an image",
                "marginal bits an image",
            ),
            rows=levels,
        ),
        Section(
            "Quality against bits",
            f"At {values['bits_per_image']:.0f} bits an image: this "
            f"model {values['reconstruction']['psnr']:.2f} dB, {codecs}. Headers of the files "
            "are not counted.",
            picture=pictures["rate"],
        ),
    ]


def _codec(name: str, found: Mapping[str, float | None]) -> str:
    quality = found["psnr"]
    return f"{name} cannot go so low" if quality is None else f"{name} {quality:.2f} dB"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def _or_empty(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else f"{value:{form}}"
