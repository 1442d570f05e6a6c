"""Curves, each figure as one PNG: of a run's log, and of quality against bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vqvae2_fast.console.words import together
from vqvae2_fast.metrics.codecs import CODECS
from vqvae2_fast.metrics.reconstruction import PairMeasures
from vqvae2_fast.report.pictures import write_picture

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from vqvae2_fast.metrics.results import CompressedFiles, Evaluation

__all__ = ["new_figure", "plot_curves", "plot_rate"]

Log = Sequence[Mapping[str, Any]]


def plot_curves(
    path: Path,
    vqvae: Log | None = None,
    priors: Mapping[str, Log] | None = None,
    *,
    marginal_bits: Mapping[str, float] | None = None,
    num_embeddings: int | None = None,
) -> None:
    """Draw the logs of a VQ-VAE and its priors: error, PSNR, use of codes, bits per code.

    Args:
        vqvae: Lines of the VQ-VAE's log.jsonl.
        priors: Lines of the log of each prior, by the name of its level.
        marginal_bits: Bits per code by frequency alone, by level; drawn as a dashed line.
    """
    priors = priors or {}
    panels = (3 if vqvae else 0) + len(priors)
    columns = min(3, panels)
    rows = -(-panels // columns)
    figure = new_figure(4.4 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    panel = iter(axes)
    if vqvae:
        axis = next(panel)
        axis.plot(*_series(vqvae, "reconstruction"), label="training batch", color="C0", lw=1)
        axis.plot(*_series(vqvae, "val_mse"), "o-", label="held out", color="C1")
        axis.set(title="Reconstruction error", xlabel="step", ylabel="MSE, pixels in [-1, 1]")
        axis.set_yscale("log")
        axis.legend()
        axis = next(panel)
        axis.plot(*_series(vqvae, "val_psnr"), "o-", color="C1")
        axis.set(title="Held-out PSNR", xlabel="step", ylabel="dB")
        axis = next(panel)
        names = [name for name in vqvae[-1] if name.endswith("_codes_used")]
        for number, name in enumerate(names):
            level = name.removeprefix("val_").removesuffix("_codes_used")
            axis.plot(*_series(vqvae, name), "o-", label=level, color=f"C{number + 2}")
        if num_embeddings:
            axis.axhline(num_embeddings, color="grey", ls="--", lw=1, label="codebook")
        axis.set(title="Codes used by held-out images", xlabel="step", ylabel="codes")
        axis.set_ylim(bottom=0)
        axis.legend()
    for level, log in priors.items():
        axis = next(panel)
        steps, nats = _series(log, "loss")
        axis.plot(
            steps, [value / math.log(2) for value in nats], lw=1, color="C0", label="training batch"
        )
        axis.plot(*_series(log, "val_bits_per_code"), "o-", color="C1", label="held out")
        if marginal_bits and level in marginal_bits:
            axis.axhline(
                marginal_bits[level], color="grey", ls="--", lw=1, label="marginal entropy"
            )
        axis.set(title=f"Prior of the {level} level", xlabel="step", ylabel="bits per code")
        axis.legend()
    for axis in axes[:panels]:
        axis.grid(alpha=0.3)
    for axis in axes[panels:]:
        axis.set_axis_off()
    figure.tight_layout()
    write_picture(path, figure)


def plot_rate(
    path: Path,
    found: Evaluation,
    others: Mapping[str, Sequence[CompressedFiles]] | None = None,
) -> None:
    """Draw quality against bits: codecs as curves, the pipeline and its files as points.

    Args:
        others: Files of other pipelines, by name.
    """
    measures = [
        measure
        for measure in fields(PairMeasures)
        if measure.metadata["drawn"]
        and getattr(found.reconstruction, measure.name, None) is not None
    ]
    figure = new_figure(5.2 * len(measures), 4.4)
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, measure in zip(axes, measures, strict=True):
        label = measure.metadata["label"] + (
            " (lower is better)" if measure.metadata["better"] == "lower" else ""
        )
        axis.set(xlabel="bits per image", ylabel=label)
        _plot_codecs(axis, found, measure.name)
        quality = getattr(found.reconstruction, measure.name)
        for rate, marker, size, label in (
            (found.bits_per_image, "o", 9, "codes under the priors"),
            (found.marginal_bits_per_image, "x", 8, "codes by their frequency alone"),
        ):
            axis.plot(rate, quality, marker, color="black", ms=size, label=label)
        files: dict[str, Sequence[CompressedFiles]] = {"files": found.compressed or ()}
        files.update(others or {})
        for number, (name, own) in enumerate(files.items()):
            for point in own:
                drawn = "" if point is own[-1] else f": {together(point.levels)}, rest drawn"
                axis.plot(
                    point.file_bits_per_image,
                    getattr(point.measured, measure.name, None),
                    ("s", "^", "D", "v")[number % 4],
                    mfc="none" if drawn else None,
                    color=f"C{(4 + number) % 10}",
                    label=name + drawn,
                )
        # Codecs go on far to the right, but each point of a pipeline is to be seen.
        bits = [found.bits_per_image]
        bits += [point.file_bits_per_image for own in files.values() for point in own]
        axis.set_xlim(0, max(2 * found.marginal_bits_per_image, 1.1 * max(bits)))
        axis.grid(alpha=0.3)
    figure.suptitle("Held-out images. Codecs: thick without headers, thin with them.", fontsize=10)
    # Below, because a point may lie anywhere above.
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4, fontsize=8)
    rows = -(-len(names) // 4)
    figure.tight_layout(rect=(0, 0.04 + 0.04 * rows, 1, 1))
    write_picture(path, figure)


def _plot_codecs(axis: Any, found: Evaluation, measure: str) -> None:
    for number, (name, curve) in enumerate(found.curves.items()):
        style, color = ("-", "--", ":", "-.")[number % 4], f"C{number}"
        values = [getattr(point.measured, measure, math.nan) for point in curve]
        label = f"{CODECS[name].name}, {CODECS[name].counted}"
        axis.plot([p.bits_per_image for p in curve], values, style, color=color, label=label)
        axis.plot([p.file_bits_per_image for p in curve], values, style, color=color, lw=0.6)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, to be written as PNG."""
    # Imported here because it takes as long as the rest of the package, and most commands plot
    # nothing. pyplot would choose a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _series(log: Log, name: str) -> tuple[list[int], list[float]]:
    lines = [line for line in log if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]
