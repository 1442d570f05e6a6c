"""Curves, each figure as one PNG: of a run's log, and of quality against bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vqvae2_fast.metrics.codecs import CODECS
from vqvae2_fast.report.files import write_picture

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from vqvae2_fast.metrics.results import Evaluation

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


def plot_rate(path: Path, found: Evaluation) -> None:
    """Draw quality against bits: the curves of codecs, and the pipeline as a point."""
    figure = new_figure(5.6, 3.8)
    axis = figure.subplots()
    for number, (name, curve) in enumerate(found.curves.items()):
        points = sorted(curve, key=lambda point: point.bits_per_image)
        axis.plot(
            [point.bits_per_image for point in points],
            [point.psnr for point in points],
            ("-", "--", ":")[number % 3],
            color=f"C{number}",
            label=f"{CODECS[name].name}, {CODECS[name].counted}",
        )
    quality = found.reconstruction.psnr
    for bits, marker, size, label in (
        (found.bits_per_image, "o", 9, "codes under the priors"),
        (found.marginal_bits_per_image, "x", 8, "codes by their frequency alone"),
    ):
        axis.plot(bits, quality, marker, color="C3", ms=size, label=label)
    axis.set(title="Held-out images", xlabel="bits per image", ylabel="PSNR, dB")
    axis.set_xlim(0, 2 * found.marginal_bits_per_image)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    write_picture(path, figure)


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
