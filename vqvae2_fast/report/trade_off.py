"""What rejection trades: measures against the share of samples that is kept, as one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.report.curves import new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["plot_trade_off"]

_PANELS = (("frechet",), ("kernel",), ("score",), ("precision", "recall"))
_COLUMNS = 5


def plot_trade_off(
    path: Path, points: Sequence[Mapping[str, Any]], names: Mapping[str, Mapping[str, str]]
) -> None:
    """Draw accuracy, distances, scores, precision and recall by the share kept.

    What no point has, for want of images or because a network does not give it, has no panel.

    Args:
        points: Each `share`, `accuracy`, and by network `measures`, with their intervals, and
            `floor` (real images in the place of as many samples).
        names: What the measures of each network are called.
    """
    panels = [
        (network, shown)
        for network in names
        for measures in _PANELS
        if (shown := _measured(points, network, measures))
    ]
    columns = min(1 + len(panels), _COLUMNS)
    rows = -(-(1 + len(panels)) // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    shares = [point["share"] for point in points]
    axes[0].plot(shares, [point["accuracy"] for point in points], "o-", label="accuracy")
    _by_share(axes[0], points, "share in its class by the classifier")
    for axis, (network, shown) in zip(axes[1:], panels, strict=False):
        for number, measure in enumerate(shown):
            _draw(axis, points, network, measure, f"C{number}")
        title = f"{' and '.join(shown)}, {network}"
        _by_share(axis, points, names[network].get(shown[0], title))
    for axis in axes[1 + len(panels) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _measured(
    points: Sequence[Mapping[str, Any]], network: str, measures: Sequence[str]
) -> tuple[str, ...]:
    """Those of the measures that some point has."""
    return tuple(
        measure
        for measure in measures
        if any(measure in point["measures"][network] for point in points)
    )


def _by_share(axis: Any, points: Sequence[Mapping[str, Any]], title: str) -> None:
    shares = [point["share"] for point in points]
    axis.set(title=title, xlabel="share kept", xscale="log")
    axis.set_xlim(1.2 * max(shares), min(shares) / 1.2)  # all panels alike, whatever they hold
    axis.set_xticks(shares)
    axis.set_xticklabels([f"{share:g}" for share in shares])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _draw(
    axis: Any, points: Sequence[Mapping[str, Any]], network: str, measure: str, colour: str
) -> None:
    found = [p for p in points if measure in p["measures"][network]]
    shares = [p["share"] for p in found]
    values = [p["measures"][network][measure] for p in found]
    middle = [v["value"] for v in values]
    reach = [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]
    axis.errorbar(shares, middle, yerr=reach, fmt="o-", color=colour, capsize=2, label=measure)
    floors = [p["floor"][network][measure]["value"] for p in found]
    axis.plot(shares, floors, ":", color=colour, lw=1, label=f"{measure} of as many real ones")
