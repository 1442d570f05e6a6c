"""What rejection trades: measures against the share of samples that is kept, as one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.report.curves import new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["plot_trade_off"]


def plot_trade_off(
    path: Path, points: Sequence[Mapping[str, Any]], names: Mapping[str, Mapping[str, str]]
) -> None:
    """Draw distances, scores, precision and recall by the share kept, with their intervals.

    Args:
        points: Each `share`, `accuracy`, and by network `measures` and `floor` (real images in the
            place of as many samples).
        names: What the measures of each network are called.
    """
    networks = list(names)
    panels = [
        ("Fréchet distance", ("frechet",)), ("kernel distance", ("kernel",)),
        ("score", ("score",)), ("precision and recall", ("precision", "recall")),
    ]  # fmt: skip
    figure = new_figure(4.2 * len(panels), 3.4 * len(networks))
    grid = figure.subplots(len(networks), len(panels), squeeze=False)
    for row, network in zip(grid, networks, strict=True):
        for axis, (title, measures) in zip(row, panels, strict=True):
            for number, measure in enumerate(measures):
                _draw(axis, points, network, measure, f"C{number}")
            first = measures[0]
            label = names[network].get(first, title)
            title = label if len(measures) == 1 else f"{title}, {network}"
            axis.set(title=title, xlabel="share kept", xscale="log")
            axis.set_xticks([point["share"] for point in points])
            axis.set_xticklabels([f"{point['share']:g}" for point in points])
            axis.minorticks_off()
            axis.invert_xaxis()
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _draw(
    axis: Any, points: Sequence[Mapping[str, Any]], network: str, measure: str, colour: str
) -> None:
    found = [p for p in points if measure in p["measures"][network]]
    shares = [p["share"] for p in found]
    values = [p["measures"][network][measure] for p in found]
    middle = [v["value"] for v in values]
    reach = [
        [v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]
    ]  # fmt: skip
    axis.errorbar(shares, middle, yerr=reach, fmt="o-", color=colour, capsize=2, label=measure)
    floors = [p["floor"][network][measure]["value"] for p in found]
    axis.plot(shares, floors, ":", color=colour, lw=1, label=f"{measure} of as many real ones")
